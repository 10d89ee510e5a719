"""What the report shows: each figure asks the views and tables for its rows."""

import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any, TypeVar

from collector.database.connection import fetch
from collector.report import plots
from collector.report.period import Period, local
from collector.text import duration, number

_MOST_SERIES = 12
_MOST_ROWS = 50
_UNUSUAL_PAUSES = 3
"""A line is broken where a pause is so many times as long as is usual in it."""

Cells = Sequence[str]


@dataclass(frozen=True, slots=True)
class Figure:
    """One part of the page.

    Args:
        title: what it is about.
        note: units, and what to know.
        plot: SVG; empty where there is none.
        heads: of the table's columns.
        rows: of the table, as text.
    """

    title: str
    note: str = ""
    plot: str = ""
    heads: Cells = ()
    rows: Sequence[Cells] = ()


def figures(connection: sqlite3.Connection, period: Period) -> Iterator[Figure]:
    """All figures that have something to show, each from a short reading of its own."""
    for figure in _FIGURES:
        if (made := figure(_Asker(connection, period))).plot or made.rows:
            yield made


class _Asker:
    """Reads what lies in the period."""

    def __init__(self, connection: sqlite3.Connection, period: Period) -> None:
        self._connection = connection
        self.period = period

    def rows(self, question: str, *more: object) -> list[dict[str, Any]]:
        """Rows of a SELECT in which ?1 and ?2 are the period's begin and end."""
        return fetch(self._connection, question, (self.period.begin, self.period.end, *more))

    def means(self, source: str, name: str, value: str) -> dict[str, plots.Points]:
        """One series a name, with the mean of each slice of the period; broken at long pauses."""
        series: dict[str, plots.Points] = defaultdict(list)
        question = f"""
            SELECT {name} AS series, avg(timestamp) AS moment, avg({value}) AS mean FROM {source}
            WHERE timestamp > ?1 AND timestamp <= ?2 AND {value} IS NOT NULL
            GROUP BY series, (timestamp - ?1) / ?3 ORDER BY series, moment"""  # noqa: S608
        for row in self.rows(question, self.period.slice_seconds):
            series[row["series"]].append((row["moment"], row["mean"]))
        return series

    def bars(self, source: str, name: str, value: str) -> dict[str, dict[str, float]]:
        """One series a name, with the sum of each bar of the period."""
        series: dict[str, dict[str, float]] = defaultdict(dict)
        question = f"""
            SELECT {name} AS series, sum({value}) AS total,
              strftime(?3, timestamp, 'unixepoch', 'localtime') AS bar
            FROM {source} WHERE timestamp > ?1 AND timestamp <= ?2 GROUP BY series, bar HAVING total > 0"""  # noqa: S608
        for row in self.rows(question, self.period.bar_format):
            series[row["series"]][row["bar"]] = row["total"]
        return series


def _models(ask: _Asker) -> Figure:
    rows = ask.rows("""
        SELECT model, generated_tokens, prompt_tokens, cached_tokens,
          generated_tokens / nullif(seconds, 0) AS speed,
          prompt_tokens / nullif(prompt_seconds, 0) AS prompt_speed
        FROM (
          SELECT model, sum(generated_tokens) AS generated_tokens, sum(generation_seconds) AS seconds,
            sum(prompt_tokens) AS prompt_tokens, sum(prompt_seconds) AS prompt_seconds,
            sum(cached_tokens) AS cached_tokens
          FROM token_steps WHERE timestamp > ?1 AND timestamp <= ?2 GROUP BY model)
        ORDER BY generated_tokens DESC, model""")
    cells = [
        (
            row["model"],
            *(number(row[name], digits=0) for name in ("generated_tokens", "prompt_tokens", "cached_tokens")),
            *(number(row[name]) for name in ("speed", "prompt_speed")),
        )
        for row in rows
    ]
    heads = ("model", "generated", "prompts", "from the cache", "generated/s", "prompts/s")
    return Figure("Models", "Tokens of the requests that finished.", heads=heads, rows=cells)


def _tokens(ask: _Asker) -> Figure:
    series = ask.bars("token_steps", "model", "generated_tokens")
    return _barred(ask, "Generated tokens", "By model.", series)


def _speeds(ask: _Asker) -> Figure:
    series = ask.means("speeds", _SPEED_NAME, "generated_tokens_per_second")
    return _dotted(ask, "Speed of generation", "Tokens a second of the requests that finished.", series)


def _prompt_speeds(ask: _Asker) -> Figure:
    series = ask.means("speeds", _SPEED_NAME, "prompt_tokens_per_second")
    note = "Tokens a second of the requests that finished, without cached tokens."
    return _dotted(ask, "Speed of reading prompts", note, series)


_SPEED_NAME = "model || coalesce(' (' || quantization || ')', '')"
_GPU_NAME = "'GPU ' || gpu_index || coalesce(' ' || name, '')"


def _usage(ask: _Asker) -> Figure:
    series = {
        **ask.means("host_metrics", "'all processes'", "cpu_usage"),
        **ask.means("metrics", "'llama-server'", "cpu_usage"),
        **ask.means("gpu_metrics", _GPU_NAME, "gpu_usage"),
    }
    return _lined(ask, "Processor and GPU", "Busy share, percent of all cores or of the GPU.", series)


def _memory(ask: _Asker) -> Figure:
    series = {
        **ask.means("host_metrics", "'RAM in use'", "(memory_total_mb - memory_available_mb) / 1024"),
        **ask.means("host_metrics", "'swap in use'", "swap_used_mb / 1024"),
    }
    return _lined(ask, "Memory of the machine", _GB, series)


def _gpu_memory(ask: _Asker) -> Figure:
    return _lined(
        ask, "Memory of the GPUs", _GB, ask.means("gpu_metrics", _GPU_NAME, "memory_used_mb / 1024")
    )


def _model_memory(ask: _Asker) -> Figure:
    series = {
        **ask.means("llama_metrics", "model || ', RAM'", "memory_used_mb / 1024"),
        **ask.means("llama_metrics", "model || ', GPU'", "gpu_memory_used_mb / 1024"),
    }
    return _lined(ask, "Memory of the models", _GB, series)


_GB = "In use, GB of 1,024 MB."


def _gpu_power(ask: _Asker) -> Figure:
    return _lined(ask, "Power of the GPUs", "Watts.", ask.means("gpu_metrics", _GPU_NAME, "power_watts"))


def _loads(ask: _Asker) -> Figure:
    rows = ask.rows("""
        SELECT * FROM model_loads
        WHERE timestamp <= ?2 AND (left_at IS NULL OR left_at > ?1) ORDER BY timestamp DESC""")
    spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in reversed(rows):
        end = row["timestamp"] + (row["resident_seconds"] or 0)
        spans[row["model"]].append((max(row["timestamp"], ask.period.begin), min(end, ask.period.end)))
    shown, note = _most(spans)
    cells = [
        (
            local(row["timestamp"]),
            row["model"],
            row["came_by"],
            number(row["load_seconds"], " s"),
            "still there" if row["left_at"] is None else f"{row['left_by']} {local(row['left_at'])}",
            duration(row["resident_seconds"]),
        )
        for row in rows[:_MOST_ROWS]
    ]
    return Figure(
        "Models in memory",
        f"From load to unload.{note}{_rest(rows)}",
        plots.stays(ask.period, shown) if spans else "",
        ("since", "model", "came by", "loading took", "left by", "stayed"),
        cells,
    )


def _trouble(ask: _Asker) -> Figure:
    series = ask.bars("logs", "coalesce(source, '')", "+level IN ('warn', 'error', 'critical')")
    rows = ask.rows(
        """
        SELECT timestamp, level, source, message FROM logs
        WHERE timestamp > ?1 AND timestamp <= ?2 AND +level IN ('warn', 'error', 'critical')
        ORDER BY timestamp DESC, id DESC LIMIT ?3""",
        _MOST_ROWS,
    )
    cells = [(local(r["timestamp"]), r["level"], r["source"] or "", r["message"]) for r in rows]
    barred = _barred(ask, "Warnings and errors", f"By source; the newest {len(cells)} below.", series)
    return Figure(barred.title, barred.note, barred.plot, ("when", "level", "source", "message"), cells)


def _gaps(ask: _Asker) -> Figure:
    rows = ask.rows("""
        SELECT * FROM gaps WHERE timestamp > ?1 AND timestamp <= ?2 ORDER BY timestamp DESC""")
    cells = [
        (local(row["began"]), local(row["timestamp"]), duration(row["seconds"])) for row in rows[:_MOST_ROWS]
    ]
    note = f"Nothing is known of these.{_rest(rows)}"
    return Figure("Times without samples", note, heads=("from", "to", "lasted"), rows=cells)


_FIGURES = (
    _models, _tokens, _speeds, _prompt_speeds, _usage, _memory, _gpu_memory, _model_memory, _gpu_power,
    _loads, _trouble, _gaps,
)  # fmt: skip


def _lined(ask: _Asker, title: str, note: str, series: Mapping[str, plots.Points]) -> Figure:
    shown, left_out = _most(series)
    broken = {name: _broken(points, ask.period) for name, points in shown.items()}
    return Figure(title, note + left_out, plots.lines(ask.period, broken) if series else "")


def _dotted(ask: _Asker, title: str, note: str, series: Mapping[str, plots.Points]) -> Figure:
    shown, left_out = _most(series)
    return Figure(title, note + left_out, plots.dots(ask.period, shown) if series else "")


def _barred(ask: _Asker, title: str, note: str, series: Mapping[str, Mapping[str, float]]) -> Figure:
    shown, left_out = _most(series)
    return Figure(title, note + left_out, plots.bars(ask.period, shown) if series else "")


Values = TypeVar("Values", bound=Sized)


def _most(series: Mapping[str, Values]) -> tuple[dict[str, Values], str]:
    """The series of which most is known, and a note on those that find no room."""
    names = sorted(series, key=lambda name: len(series[name]), reverse=True)[:_MOST_SERIES]
    left_out = len(series) - len(names)
    note = f" {left_out} of which less is known are left out." if left_out else ""
    return {name: series[name] for name in sorted(names)}, note


def _rest(rows: Sequence[object]) -> str:
    return f" The newest {_MOST_ROWS} of {len(rows)} are listed." if len(rows) > _MOST_ROWS else ""


def _broken(points: plots.Points, period: Period) -> plots.Points:
    """The points with a break in each unusual pause: nobody knows what was in it."""
    pauses = [later[0] - earlier[0] for earlier, later in pairwise(points)]
    longest = _UNUSUAL_PAUSES * max(period.slice_seconds, median(pauses or [0]))
    broken: plots.Points = []
    for point, pause in zip(points, [0, *pauses], strict=True):
        broken += [(point[0], None), point] if pause > longest else [point]
    return broken
