"""`status`: the newest readings, how the sources and jobs fare, sizes. Reads, never writes."""

import json
import sqlite3
import sys
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import collector
from collector.database.connection import connect_read_only, explained, fetch
from collector.database.lock import running_collector
from collector.units import BYTES_PER_MB

Record = dict[str, Any]

_OK_STATES = ("ok", "up", "running", "absent")
_TROUBLE_SHOWN = 5
_JUST_NOW_SECONDS = 2
_BOLD, _DIM, _RED, _GREEN, _RESET = "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[0m"


def print_status(database: Path, *, as_json: bool) -> None:
    """Print it.

    Raises:
        DatabaseError: there is no database, or it cannot be read.
    """
    status = read_status(database)
    if as_json:
        print(json.dumps(status, indent=2))
    else:
        print("\n".join(_lines(status, colours=sys.stdout.isatty())))


def read_status(database: Path) -> Record:
    """Everything that `status` knows, for `--json`: rows are as in the tables, None where there is none.

    Raises:
        DatabaseError: there is no database, or it cannot be read.
    """
    with closing(connect_read_only(database)) as connection, explained(database):
        tables = [
            row["name"]
            for row in fetch(connection, "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
            if not row["name"].startswith("sqlite_")
        ]
        newest = {name: _newest(connection, name, tables) for name in _SHOWN_TABLES}
        health = _rows(connection, "collector_health", tables, "SELECT * FROM collector_health ORDER BY name")
        return {
            "collector": {"version": collector.__version__, "process_id": running_collector(database)},
            "database": {
                "path": str(database),
                "size_bytes": database.stat().st_size,
                "rows": {name: _count(connection, name) for name in tables},
            },
            "metrics": next(iter(newest["metrics"]), None),
            "host_metrics": next(iter(newest["host_metrics"]), None),
            "gpu_metrics": newest["gpu_metrics"],
            "llama_metrics": newest["llama_metrics"],
            "speeds": _rows(connection, "llama_metrics", tables, _LAST_SPEEDS),
            "health": health,
            "backup": _stored(connection, "lastBackup", tables),
            "backup_test": _stored(connection, "lastBackupTest", tables),
            "trouble": _rows(connection, "logs", tables, _LAST_TROUBLE),
        }


_SHOWN_TABLES = ("metrics", "host_metrics", "gpu_metrics", "llama_metrics")
_LAST_TROUBLE = (
    "SELECT timestamp, level, source, message FROM logs WHERE level IN ('warn', 'error', 'critical') "  # noqa: S608
    f"ORDER BY id DESC LIMIT {_TROUBLE_SHOWN}"
)
_LAST_SPEEDS = """
    SELECT model, timestamp, predicted_tokens_per_second, prompt_tokens_per_second FROM (
        SELECT * FROM llama_metrics ORDER BY timestamp DESC LIMIT 2000)
    WHERE predicted_tokens_per_second IS NOT NULL
    GROUP BY model HAVING timestamp = max(timestamp)"""


def _rows(connection: sqlite3.Connection, table: str, tables: Iterable[str], query: str) -> list[Record]:
    return fetch(connection, query) if table in tables else []


def _stored(connection: sqlite3.Connection, key: str, tables: Iterable[str]) -> Any:
    """A value of `metadata`; None where there is none."""
    rows = _rows(connection, "metadata", tables, f"SELECT value FROM metadata WHERE key = '{key}'")  # noqa: S608
    with suppress(ValueError):
        return json.loads(rows[0]["value"]) if rows else None
    return None


def _newest(connection: sqlite3.Connection, table: str, tables: Iterable[str]) -> list[Record]:
    """All rows of a table's newest second."""
    return _rows(
        connection,
        table,
        tables,
        f"SELECT * FROM {table} WHERE timestamp = (SELECT max(timestamp) FROM {table})",  # noqa: S608
    )


def _count(connection: sqlite3.Connection, table: str) -> int:
    quoted = table.replace('"', '""')
    (row,) = fetch(connection, f'SELECT count(*) AS rows FROM "{quoted}"')  # noqa: S608
    return int(row["rows"])


def _lines(status: Record, *, colours: bool) -> list[str]:
    paint = _Paint(colours)
    return [
        *_headline(status, paint),
        "",
        *_readings(status, paint),
        "",
        *_health_lines(status["health"], paint),
        *_backup_lines(status["backup"], status["backup_test"], paint),
        *_trouble_lines(status["trouble"], paint),
    ]


class _Paint:
    def __init__(self, colours: bool) -> None:  # noqa: FBT001
        self._colours = colours

    def __call__(self, code: str, text: str) -> str:
        return f"{code}{text}{_RESET}" if self._colours else text


def _headline(status: Record, paint: _Paint) -> list[str]:
    process_id = status["collector"]["process_id"]
    state = paint(_GREEN, f"running (process {process_id})") if process_id else paint(_RED, "not running")
    database = status["database"]
    rows = ", ".join(f"{count:,} {name}" for name, count in database["rows"].items() if count)
    return [
        f"{paint(_BOLD, 'llama-collector')} {status['collector']['version']}  {state}",
        f"{database['path']}  {database['size_bytes'] / BYTES_PER_MB:,.1f} MB  {paint(_DIM, rows)}",
    ]


def _readings(status: Record, paint: _Paint) -> list[str]:
    metrics = status["metrics"]
    if metrics is None:
        return ["no sample yet: start the collector (llama-collector run)"]
    lines = [paint(_DIM, f"newest sample {_ago(metrics['timestamp'])}"), _server_line(metrics, paint)]
    speeds = {row["model"]: row for row in status["speeds"]}
    if status["llama_metrics"] and status["llama_metrics"][0]["timestamp"] >= metrics["timestamp"] - 60:
        lines += [_model_line(row, speeds.get(row["model"]), paint) for row in status["llama_metrics"]]
    if status["host_metrics"]:
        lines.append(_host_line(status["host_metrics"], paint))
    if status["gpu_metrics"] and status["gpu_metrics"][0]["timestamp"] >= metrics["timestamp"] - 60:
        lines += [_gpu_line(row, paint) for row in status["gpu_metrics"]]
    return lines


def _server_line(row: Record, paint: _Paint) -> str:
    if row["uptime"] == 0:
        return _line(paint, "llama-server", ["no process"])
    return _line(
        paint,
        "llama-server",
        [
            f"up {_duration(row['uptime'])}",
            f"cpu {_number(row['cpu_usage'], ' %')}",
            f"memory {_number(row['memory_usage'], ' %')}",
            f"models loaded {_number(row['active_models'], digits=0)}",
        ],
    )


def _model_line(row: Record, speed: Record | None, paint: _Paint) -> str:
    parts = [
        f"requests {_number(row['requests_processing'], digits=0)}",
        f"waiting {_number(row['requests_deferred'], digits=0)}",
        f"generated {_number(row['tokens_predicted_total'], ' tokens', digits=0)}",
    ]
    if speed:
        parts.append(
            f"last speed {_number(speed['predicted_tokens_per_second'], ' tokens/s')} "
            f"{paint(_DIM, _ago(speed['timestamp']))}"
        )
    return _line(paint, f"  {_plain(row['model'])}", parts)


def _host_line(row: Record, paint: _Paint) -> str:
    parts = [
        f"cpu {_number(row['cpu_usage'], ' %')}",
        f"load {_number(row['load_1m'])}",
        f"memory {_number(row['memory_usage'], ' %')}",
        f"swap {_number(row['swap_usage'], ' %')}",
        f"disk {_number(row['disk_usage'], ' %')}",
    ]
    if row["cpu_temperature_celsius"] is not None:
        parts.append(f"{_number(row['cpu_temperature_celsius'], ' °C')}")
    return _line(paint, "host", parts)


def _gpu_line(row: Record, paint: _Paint) -> str:
    parts = [
        f"{_number(row['gpu_usage'], ' %')}",
        f"memory {_number(row['memory_used_mb'], digits=0)} MB",
        f"of {_number(row['memory_total_mb'], digits=0)} MB",
        f"{_number(row['temperature_celsius'], ' °C', digits=0)}",
        f"{_number(row['power_watts'], ' W', digits=0)}",
        str(row["name"] or ""),
    ]
    return _line(paint, f"gpu {row['gpu_index']}", parts)


def _line(paint: _Paint, title: str, parts: list[str]) -> str:
    return f"{paint(_BOLD, f'{title:<16}')} {'   '.join(parts)}"


def _health_lines(health: list[Record], paint: _Paint) -> list[str]:
    lines = []
    for row in health:
        well = row["state"] in _OK_STATES
        state = paint(_GREEN if well else _RED, f"{row['state']:<12}")
        lines.append(
            f"{row['name']:<16} {state} {paint(_DIM, 'since ' + _ago(row['since']))}  {row['message']}"
        )
    return lines


def _backup_lines(backup: Any, test: Any, paint: _Paint) -> list[str]:
    lines = []
    if isinstance(backup, dict) and "file" in backup:
        size = f"{_number(backup.get('bytes', 0) / BYTES_PER_MB, ' MB')}"
        lines.append(_line(paint, "last backup", [_ago(backup.get("time")), size, _plain(backup["file"])]))
    if isinstance(test, dict) and "verdict" in test:
        lines.append(_line(paint, "restored on trial", [_ago(test.get("time")), _plain(test["verdict"])]))
    return lines


def _trouble_lines(trouble: list[Record], paint: _Paint) -> list[str]:
    if not trouble:
        return []
    lines = [
        f"{_ago(row['timestamp']):>16}  {row['level']:<5} {row['source']}: {_plain(row['message']):.200}"
        for row in reversed(trouble)
    ]
    return ["", paint(_DIM, "last warnings and errors"), *lines]


def _plain(text: object) -> str:
    """Text from outside, without what a terminal would obey."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in str(text)
    )


def _number(value: float | None, unit: str = "", digits: int = 1) -> str:
    return "unknown" if value is None else f"{value:,.{digits}f}{unit}"


def _ago(timestamp: int | None) -> str:
    if timestamp is None:
        return "never"
    seconds = time.time() - timestamp
    return "just now" if seconds < _JUST_NOW_SECONDS else f"{_duration(seconds)} ago"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:,.0f} s"
