"""`status`: the newest readings, how the sources and jobs fare, sizes. Reads, never writes."""

import json
import sqlite3
import sys
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import collector
from collector.database.collector_lock import running_collector
from collector.database.connection import connect_read_only, fetch, translate_sqlite_errors
from collector.schema import BYTES_PER_MB
from collector.text import ago, duration, number, plain

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


def read_status(database: Path, *, count_rows: bool = True) -> Record:
    """Everything that `status` knows, for `--json`: rows are as in the tables, None where there is none.

    Args:
        database: the file.
        count_rows: whether the rows of all tables are counted, which reads much of a large file.

    Raises:
        DatabaseError: there is no database, or it cannot be read.
    """
    with closing(connect_read_only(database)) as connection, translate_sqlite_errors(database):
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
                "rows": {name: _count(connection, name) for name in tables if count_rows},
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


def live_lines(status: Record, histories: Mapping[tuple[str, object], str]) -> list[str]:
    """What `--watch` shows of it: readings first, each with its history below; what may be cut off last.

    Args:
        status: as it is read.
        histories: lines by table and, where that has a row each, by model or GPU index.
    """
    paint = _Paint(sys.stdout.isatty())
    return [
        *_headline(status, paint),
        "",
        *_readings(status, paint, histories),
        *_trouble_lines(status["trouble"], paint),
        "",
        *_health_lines(status["health"], paint),
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


def _readings(
    status: Record, paint: _Paint, histories: Mapping[tuple[str, object], str] = MappingProxyType({})
) -> list[str]:
    metrics = status["metrics"]
    if metrics is None:
        return ["no sample yet: start the collector (llama-collector run)"]
    lines = [paint(_DIM, f"newest sample {ago(metrics['timestamp'])}"), _server_line(metrics, paint)]
    speeds = {row["model"]: row for row in status["speeds"]}
    if status["llama_metrics"] and status["llama_metrics"][0]["timestamp"] >= metrics["timestamp"] - 60:
        for row in status["llama_metrics"]:
            lines.append(_model_line(row, speeds.get(row["model"]), paint))
            lines += _history(histories, "llama_metrics", row["model"])
    if status["host_metrics"]:
        lines.append(_host_line(status["host_metrics"], paint))
        lines += _history(histories, "host_metrics", None)
    if status["gpu_metrics"] and status["gpu_metrics"][0]["timestamp"] >= metrics["timestamp"] - 60:
        for row in status["gpu_metrics"]:
            lines.append(_gpu_line(row, paint))
            lines += _history(histories, "gpu_metrics", row["gpu_index"])
    return lines


def _history(histories: Mapping[tuple[str, object], str], table: str, key: object) -> list[str]:
    return [f"{'':<16} {histories[table, key]}"] if (table, key) in histories else []


def _server_line(row: Record, paint: _Paint) -> str:
    if row["uptime"] == 0:
        return _line(paint, "llama-server", ["no process"])
    return _line(
        paint,
        "llama-server",
        [
            f"up {duration(row['uptime'])}",
            f"cpu {number(row['cpu_usage'], ' %')}",
            f"memory {number(row['memory_usage'], ' %')}",
            f"models loaded {number(row['active_models'], digits=0)}",
        ],
    )


def _model_line(row: Record, speed: Record | None, paint: _Paint) -> str:
    parts = [
        f"requests {number(row['requests_processing'], digits=0)}",
        f"waiting {number(row['requests_deferred'], digits=0)}",
        f"generated {number(row['tokens_predicted_total'], ' tokens', digits=0)}",
    ]
    if speed:
        parts.append(
            f"last speed {number(speed['predicted_tokens_per_second'], ' tokens/s')} "
            f"{paint(_DIM, ago(speed['timestamp']))}"
        )
    return _line(paint, f"  {plain(row['model'])}", parts)


def _host_line(row: Record, paint: _Paint) -> str:
    parts = [
        f"cpu {number(row['cpu_usage'], ' %')}",
        f"load {number(row['load_1m'])}",
        f"memory {number(row['memory_usage'], ' %')}",
        f"swap {number(row['swap_usage'], ' %')}",
        f"disk {number(row['disk_usage'], ' %')}",
    ]
    if row["cpu_temperature_celsius"] is not None:
        parts.append(f"{number(row['cpu_temperature_celsius'], ' °C')}")
    return _line(paint, "host", parts)


def _gpu_line(row: Record, paint: _Paint) -> str:
    parts = [
        f"{number(row['gpu_usage'], ' %')}",
        f"memory {number(row['memory_used_mb'], digits=0)} MB",
        f"of {number(row['memory_total_mb'], digits=0)} MB",
        f"{number(row['temperature_celsius'], ' °C', digits=0)}",
        f"{number(row['power_watts'], ' W', digits=0)}",
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
            f"{row['name']:<16} {state} {paint(_DIM, 'since ' + ago(row['since']))}  {row['message']}"
        )
    return lines


def _backup_lines(backup: Any, test: Any, paint: _Paint) -> list[str]:
    lines = []
    if isinstance(backup, dict) and "file" in backup:
        size = f"{number(backup.get('bytes', 0) / BYTES_PER_MB, ' MB')}"
        lines.append(_line(paint, "last backup", [ago(backup.get("time")), size, plain(backup["file"])]))
    if isinstance(test, dict) and "verdict" in test:
        lines.append(_line(paint, "restored on trial", [ago(test.get("time")), plain(test["verdict"])]))
    return lines


def _trouble_lines(trouble: list[Record], paint: _Paint) -> list[str]:
    if not trouble:
        return []
    lines = [
        f"{ago(row['timestamp']):>16}  {plain(row['level']):<5} "
        f"{plain(row['source'])}: {plain(row['message']):.200}"
        for row in reversed(trouble)
    ]
    return ["", paint(_DIM, "last warnings and errors"), *lines]
