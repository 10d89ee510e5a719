"""The lines that `status` and `status --watch` show."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from collector.schema import BYTES_PER_MB
from collector.text import format_age, format_duration, format_number, printable

Record = dict[str, Any]
Histories = Mapping[tuple[str, object], str]
"""Sparklines by table and series: a model, the uuid (else the index) of a GPU, or None for the only one."""

_NO_HISTORIES: Histories = MappingProxyType({})
_OK_STATES = ("ok", "up", "running", "absent")
_MAX_AGE_SECONDS = 60
"""Age, relative to the newest sample, above which rows of models and GPUs are not shown."""

_SPEED_SECONDS = 3600
"""A request this much older than what the counters show last is not the last one: its log is not read now."""


class Colours:
    """Terminal colours; where they are disabled, text is returned unchanged.

    Args:
        enabled: whether the output is a terminal.
    """

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled

    def bold(self, text: str) -> str:
        """Return bold text."""
        return self._coloured(1, text)

    def dim(self, text: str) -> str:
        """Return dim text."""
        return self._coloured(2, text)

    def red(self, text: str) -> str:
        """Return red text."""
        return self._coloured(31, text)

    def green(self, text: str) -> str:
        """Return green text."""
        return self._coloured(32, text)

    def _coloured(self, code: int, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._enabled else text


def format_status(status: Record, *, colours: bool) -> list[str]:
    """Return the lines of `status`.

    Args:
        status: the result of `read_status`.
        colours: whether the output is a terminal.
    """
    palette = Colours(enabled=colours)
    return [
        *_headline(status, palette),
        "",
        *_readings(status, palette),
        "",
        *_health(status["health"], palette),
        *_backups(status["backup"], status["backup_test"], palette),
        *_warnings(status["trouble"], palette),
    ]


def format_live_status(status: Record, histories: Histories, *, colours: bool) -> list[str]:
    """Return the lines of `status --watch`. The health is last because a small terminal cuts the end off.

    Args:
        status: the result of `read_status`.
        histories: sparklines, each shown below the readings of its series.
        colours: whether the output is a terminal.
    """
    palette = Colours(enabled=colours)
    return [
        *_headline(status, palette),
        "",
        *_readings(status, palette, histories),
        *_warnings(status["trouble"], palette),
        "",
        *_health(status["health"], palette),
    ]


def _headline(status: Record, colours: Colours) -> list[str]:
    """Return the lines about the collector and its database."""
    process_id = status["collector"]["process_id"]
    state = colours.green(f"running (process {process_id})") if process_id else colours.red("not running")
    database = status["database"]
    rows = ", ".join(f"{count:,} {name}" for name, count in database["rows"].items() if count)
    size_mb = database["size_bytes"] / BYTES_PER_MB
    return [
        f"{colours.bold('llama-collector')} {status['collector']['version']}  {state}",
        f"{printable(database['path'])}  {size_mb:,.1f} MB  {colours.dim(rows)}",
    ]


def _readings(status: Record, colours: Colours, histories: Histories = _NO_HISTORIES) -> list[str]:
    """Return the lines of the newest sample, each followed by its history if there is one."""
    metrics = status["metrics"]
    if metrics is None:
        return ["no sample yet: start the collector (llama-collector run)"]

    def current(table: str) -> list[Record]:
        oldest = metrics["timestamp"] - _MAX_AGE_SECONDS
        return [row for row in status[table] if row["timestamp"] >= oldest]

    def history(table: str, series: object) -> list[str]:
        return [f"{'':<16} {histories[table, series]}"] if (table, series) in histories else []

    lines = [
        colours.dim(f"newest sample {format_age(metrics['timestamp'])}"),
        _server_line(metrics, colours),
    ]
    speeds = _last_speeds(status)
    for row in current("llama_metrics"):
        lines.append(_model_line(row, speeds.get(row["model"]), colours))
        lines += history("llama_metrics", row["model"])
    if status["host_metrics"]:
        lines.append(_host_line(status["host_metrics"], colours))
        lines += history("host_metrics", None)
    for row in current("gpu_metrics"):
        lines.append(_gpu_line(row, colours))
        lines += history("gpu_metrics", row["uuid"] or row["gpu_index"])
    return lines


class _Speed(NamedTuple):
    """A speed of generation: tokens per second, Unix seconds of its end, and where it comes from."""

    tokens_per_second: float
    timestamp: int
    source: str


def _last_speeds(status: Record) -> dict[str, _Speed]:
    """Return the last speed of each model: of its last request, unless the counters show much later ones."""
    speeds = {
        row["model"]: _Speed(row["predicted_tokens_per_second"], row["timestamp"], "counters")
        for row in status["speeds"]
    }
    for row in status["request_speeds"]:
        counted = speeds.get(row["model"])
        if counted is None or row["timestamp"] > counted.timestamp - _SPEED_SECONDS:
            speeds[row["model"]] = _Speed(row["tokens_per_second"], row["timestamp"], "last request")
    return speeds


def _server_line(row: Record, colours: Colours) -> str:
    if row["uptime"] == 0:
        return _line("llama-server", ["no process"], colours)
    parts = [
        f"up {format_duration(row['uptime'])}",
        f"cpu {format_number(row['cpu_usage'], ' %')}",
        f"memory {format_number(row['memory_usage'], ' %')}",
        f"models loaded {format_number(row['active_models'], digits=0)}",
    ]
    return _line("llama-server", parts, colours)


def _model_line(row: Record, speed: _Speed | None, colours: Colours) -> str:
    parts = [
        f"requests {format_number(row['requests_processing'], digits=0)}",
        f"waiting {format_number(row['requests_deferred'], digits=0)}",
        f"generated {format_number(row['tokens_predicted_total'], ' tokens', digits=0)}",
    ]
    if speed:
        age = colours.dim(f"{format_age(speed.timestamp)}, {speed.source}")
        parts.append(f"last speed {format_number(speed.tokens_per_second, ' tokens/s')} {age}")
    return _line(f"  {printable(row['model'])}", parts, colours)


def _host_line(row: Record, colours: Colours) -> str:
    parts = [
        f"cpu {format_number(row['cpu_usage'], ' %')}",
        f"load {format_number(row['load_1m'])}",
        f"memory {format_number(row['memory_usage'], ' %')}",
        f"swap {format_number(row['swap_usage'], ' %')}",
        f"disk {format_number(row['disk_usage'], ' %')}",
    ]
    if row["cpu_temperature_celsius"] is not None:
        parts.append(f"{format_number(row['cpu_temperature_celsius'], ' °C')}")
    return _line("host", parts, colours)


def _gpu_line(row: Record, colours: Colours) -> str:
    parts = [
        f"{format_number(row['gpu_usage'], ' %')}",
        f"memory {format_number(row['memory_used_mb'], digits=0)} MB",
        f"of {format_number(row['memory_total_mb'], digits=0)} MB",
        f"{format_number(row['temperature_celsius'], ' °C', digits=0)}",
        f"{format_number(row['power_watts'], ' W', digits=0)}",
        " ".join(printable(row.get(name) or "") for name in ("name", "bus_address")).strip(),
    ]
    return _line(f"gpu {row['gpu_index']}", parts, colours)


def _line(title: str, parts: list[str], colours: Colours) -> str:
    return f"{colours.bold(f'{title:<16}')} {'   '.join(parts)}"


def _health(health: list[Record], colours: Colours) -> list[str]:
    """Return a line for each source and job with its state."""
    lines = []
    for row in health:
        state = f"{printable(row['state']):<12}"
        shown = colours.green(state) if row["state"] in _OK_STATES else colours.red(state)
        since = colours.dim(f"since {format_age(row['since'])}")
        lines.append(f"{printable(row['name']):<16} {shown} {since}  {printable(row['message'])}")
    return lines


def _backups(backup: Any, trial: Any, colours: Colours) -> list[str]:
    """Return the lines of the last backup and trial restore.

    The values are from `metadata`, where another program may have written anything.
    """
    lines = []
    if isinstance(backup, dict) and "file" in backup:
        size = format_number(backup.get("bytes", 0) / BYTES_PER_MB, " MB")
        parts = [format_age(backup.get("time")), size, printable(backup["file"])]
        lines.append(_line("last backup", parts, colours))
    if isinstance(trial, dict) and "verdict" in trial:
        parts = [format_age(trial.get("time")), printable(trial["verdict"])]
        lines.append(_line("trial restore", parts, colours))
    return lines


def _warnings(rows: list[Record], colours: Colours) -> list[str]:
    """Return the last warnings and errors, oldest first, below a heading."""
    if not rows:
        return []
    lines = [
        f"{format_age(row['timestamp']):>16}  {printable(row['level']):<5} "
        f"{printable(row['source'])}: {printable(row['message']):.200}"
        for row in reversed(rows)
    ]
    return ["", colours.dim("last warnings and errors"), *lines]
