"""The figures of the report: plots and tables of what the views and tables contain about a period."""

import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TypeVar

from collector.report import plots
from collector.report.period import Period, local
from collector.report.period_reader import PeriodReader
from collector.text import format_duration, format_number
from collector.views.requests import request_speed

_MAX_SERIES = 12
_MAX_ROWS = 50
_LONG_GAP = 3
"""A line is interrupted where two points are more than this many times the median gap apart."""
_SPEED_NAME = "model || coalesce(' (' || quantization || ')', '')"
_GPU_NAME = "'GPU ' || gpu_index || coalesce(' ' || name, '')"
"""SQL expressions that name a series: a model with its quantization, and a GPU with its index."""

Cells = Sequence[str]


@dataclass(frozen=True, slots=True)
class Figure:
    """One section of the page.

    Args:
        title: its heading.
        note: the unit, and what the data include.
        plot: SVG; empty without one.
        heads: headings of the table's columns.
        rows: cells of the table, as text.
    """

    title: str
    note: str = ""
    plot: str = ""
    heads: Cells = ()
    rows: Sequence[Cells] = ()


def figures(connection: sqlite3.Connection, period: Period) -> Iterator[Figure]:
    """Yield the figures in the order of the page; one without data has neither a plot nor rows.

    Each query is a transaction of its own, so that a running collector waits for one query at most.
    """
    reader = PeriodReader(connection, period)
    yield _models(reader)
    tokens = reader.bars("token_steps", "model", "generated_tokens")
    yield _bar_figure(reader, "Generated tokens", "By model.", tokens)
    yield _dot_figure(
        reader,
        "Speed of generation",
        "Tokens a second of the requests that finished.",
        reader.means("speeds", _SPEED_NAME, "generated_tokens_per_second"),
    )
    yield _dot_figure(
        reader,
        "Speed of reading prompts",
        "Tokens a second of the requests that finished, without cached tokens.",
        reader.means("speeds", _SPEED_NAME, "prompt_tokens_per_second"),
    )
    usage = {
        **reader.means("host_metrics", "'all processes'", "cpu_usage"),
        **reader.means("metrics", "'llama-server'", "cpu_usage"),
        **reader.means("gpu_metrics", _GPU_NAME, "gpu_usage"),
    }
    yield _line_figure(reader, "Processor and GPU", "Busy share, percent of all cores or of the GPU.", usage)
    yield from _memory(reader)
    power = reader.means("gpu_metrics", _GPU_NAME, "power_watts")
    yield _line_figure(reader, "Power of the GPUs", "Watts.", power)
    yield _model_loads(reader)
    yield _warnings(reader)
    yield _gaps(reader)


def _models(reader: PeriodReader) -> Figure:
    """Return a table of the tokens and mean speeds of each model."""
    has_requests = reader.rows("SELECT 1 FROM sqlite_master WHERE name = 'requests' AND ?1 < ?2")
    generation, prompt = (
        request_speed(of, "?1 + 1", "?2 + 1", "sums.model") if has_requests else "NULL"
        for of in ("generation", "prompt")
    )
    rows = reader.rows(f"""
        SELECT model, generated_tokens, prompt_tokens, cached_tokens,
          coalesce(request_speed, generated_tokens / nullif(seconds, 0)) AS speed,
          coalesce(request_prompt_speed, prompt_tokens / nullif(prompt_seconds, 0)) AS prompt_speed,
          coalesce(request_speed, request_prompt_speed) IS NOT NULL AS is_of_requests
        FROM (SELECT *, {generation} AS request_speed, {prompt} AS request_prompt_speed FROM (
          SELECT model, sum(generated_tokens) AS generated_tokens, sum(generation_seconds) AS seconds,
            sum(prompt_tokens) AS prompt_tokens, sum(prompt_seconds) AS prompt_seconds,
            sum(cached_tokens) AS cached_tokens
          FROM token_steps WHERE timestamp > ?1 AND timestamp <= ?2 GROUP BY model) AS sums)
        ORDER BY generated_tokens DESC, model""")  # noqa: S608 - our own names
    cells = [
        (
            row["model"],
            *(
                format_number(row[name], digits=0)
                for name in ("generated_tokens", "prompt_tokens", "cached_tokens")
            ),
            *(format_number(row[name]) for name in ("speed", "prompt_speed")),
            "requests" if row["is_of_requests"] else "counters",
        )
        for row in rows
    ]
    heads = ("model", "generated", "prompts", "from the cache", "generated/s", "prompts/s", "speeds from")
    return Figure("Models", "Tokens of the requests that finished.", heads=heads, rows=cells)


def _memory(reader: PeriodReader) -> Iterator[Figure]:
    """Yield the memory of the machine, of its GPUs and of the models."""
    note = "In use, GB of 1,024 MB."
    machine = {
        **reader.means("host_metrics", "'RAM in use'", "(memory_total_mb - memory_available_mb) / 1024"),
        **reader.means("host_metrics", "'swap in use'", "swap_used_mb / 1024"),
    }
    yield _line_figure(reader, "Memory of the machine", note, machine)
    gpus = reader.means("gpu_metrics", _GPU_NAME, "memory_used_mb / 1024")
    yield _line_figure(reader, "Memory of the GPUs", note, gpus)
    models = {
        **reader.means("llama_metrics", "model || ', RAM'", "memory_used_mb / 1024"),
        **reader.means("llama_metrics", "model || ', GPU'", "gpu_memory_used_mb / 1024"),
    }
    yield _line_figure(reader, "Memory of the models", note, models)


def _model_loads(reader: PeriodReader) -> Figure:
    """Return when each model was in memory, as a plot, with a table of the newest loads."""
    rows = reader.rows("""
        SELECT * FROM model_loads
        WHERE timestamp <= ?2 AND (left_at IS NULL OR left_at > ?1) ORDER BY timestamp DESC""")
    spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in reversed(rows):
        end = row["timestamp"] + (row["resident_seconds"] or 0)
        spans[row["model"]].append((max(row["timestamp"], reader.period.begin), min(end, reader.period.end)))
    shown, note = _longest_series(spans)
    cells = [
        (
            local(row["timestamp"]),
            row["model"],
            row["came_by"],
            format_number(row["load_seconds"], " s"),
            "still there" if row["left_at"] is None else f"{row['left_by']} {local(row['left_at'])}",
            format_duration(row["resident_seconds"]),
        )
        for row in rows[:_MAX_ROWS]
    ]
    return Figure(
        "Models in memory",
        f"From load to unload.{note}{_shortened_note(rows)}",
        plots.residency(reader.period, shown) if spans else "",
        ("since", "model", "event", "load time", "until", "resident"),
        cells,
    )


def _warnings(reader: PeriodReader) -> Figure:
    """Return the number of warnings and errors by source, with a table of the newest ones."""
    series = reader.bars("logs", "coalesce(source, '')", "+level IN ('warn', 'error', 'critical')")
    rows = reader.rows(
        """
        SELECT timestamp, level, source, message FROM logs
        WHERE timestamp > ?1 AND timestamp <= ?2 AND +level IN ('warn', 'error', 'critical')
        ORDER BY timestamp DESC, id DESC LIMIT ?3""",
        _MAX_ROWS,
    )
    cells = [(local(r["timestamp"]), r["level"], r["source"] or "", r["message"]) for r in rows]
    bars = _bar_figure(reader, "Warnings and errors", f"By source; the newest {len(cells)} below.", series)
    return Figure(bars.title, bars.note, bars.plot, ("when", "level", "source", "message"), cells)


def _gaps(reader: PeriodReader) -> Figure:
    """Return a table of the newest times in which nothing was sampled."""
    rows = reader.rows("""
        SELECT * FROM gaps WHERE timestamp > ?1 AND timestamp <= ?2 ORDER BY timestamp DESC""")
    cells = [
        (local(row["began"]), local(row["timestamp"]), format_duration(row["seconds"]))
        for row in rows[:_MAX_ROWS]
    ]
    note = f"Nothing is known of these times.{_shortened_note(rows)}"
    return Figure("Times without samples", note, heads=("from", "to", "lasted"), rows=cells)


def _line_figure(reader: PeriodReader, title: str, note: str, series: Mapping[str, plots.Points]) -> Figure:
    shown, left_out = _longest_series(series)
    lines = {name: _interrupt_at_gaps(points, reader.period) for name, points in shown.items()}
    return Figure(title, note + left_out, plots.lines(reader.period, lines) if series else "")


def _dot_figure(reader: PeriodReader, title: str, note: str, series: Mapping[str, plots.Points]) -> Figure:
    shown, left_out = _longest_series(series)
    return Figure(title, note + left_out, plots.dots(reader.period, shown) if series else "")


def _bar_figure(
    reader: PeriodReader, title: str, note: str, series: Mapping[str, Mapping[str, float]]
) -> Figure:
    shown, left_out = _longest_series(series)
    return Figure(title, note + left_out, plots.bars(reader.period, shown) if series else "")


Values = TypeVar("Values", bound=Sized)


def _longest_series(series: Mapping[str, Values]) -> tuple[dict[str, Values], str]:
    """Return the series with the most values, and a note on how many others are left out."""
    names = sorted(series, key=lambda name: len(series[name]), reverse=True)[:_MAX_SERIES]
    left_out = len(series) - len(names)
    note = f" {left_out} of which less is known are left out." if left_out else ""
    return {name: series[name] for name in sorted(names)}, note


def _shortened_note(rows: Sequence[object]) -> str:
    return f" The newest {_MAX_ROWS} of {len(rows)} are listed." if len(rows) > _MAX_ROWS else ""


def _interrupt_at_gaps(points: plots.Points, period: Period) -> plots.Points:
    """Return the points with a value None added in each long gap, so that no line is drawn across it."""
    gaps = [later[0] - earlier[0] for earlier, later in pairwise(points)]
    longest = _LONG_GAP * max(period.slice_seconds, median(gaps or [0]))
    interrupted: plots.Points = []
    for point, gap in zip(points, [0, *gaps], strict=True):
        interrupted += [(point[0], None), point] if gap > longest else [point]
    return interrupted
