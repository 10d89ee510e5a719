"""`status`: prints the newest readings, the states of sources and jobs, and sizes. It only reads."""

import argparse
import json
import sqlite3
import sys
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import collector
from collector.commands.status_text import Record, format_status
from collector.database.connection import connect_read_only, fetch, translate_sqlite_errors
from collector.database.locks.collector_lock import running_collector
from collector.schema import quote_identifier
from collector.settings import find_settings_file, load_settings
from collector.views.requests import GENERATION_SPEED

_WARNINGS_SHOWN = 5
_LAST_WARNINGS = (
    "SELECT timestamp, level, source, message FROM logs WHERE level IN ('warn', 'error', 'critical') "  # noqa: S608
    f"ORDER BY id DESC LIMIT {_WARNINGS_SHOWN}"
)
_LAST_SPEEDS = """
    SELECT model, timestamp, predicted_tokens_per_second, prompt_tokens_per_second FROM (
        SELECT * FROM llama_metrics ORDER BY timestamp DESC LIMIT 2000)
    WHERE predicted_tokens_per_second IS NOT NULL
    GROUP BY model HAVING timestamp = max(timestamp)"""
_REQUEST_SPEEDS = f"""
    SELECT model, timestamp, tokens_per_second FROM (
        SELECT model, timestamp, id, {GENERATION_SPEED} AS tokens_per_second FROM (
            SELECT * FROM requests WHERE timestamp < 9e18 ORDER BY timestamp DESC LIMIT 2000)
        WHERE outcome = 'finished' AND generated_tokens > 1 AND generation_ms > 0 ORDER BY id)
    GROUP BY model HAVING timestamp = max(timestamp)"""  # noqa: S608 - our own names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `status`."""
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as one JSON object")
    form.add_argument("--watch", action="store_true", help="live, with short histories, until Ctrl-C")


def run(options: argparse.Namespace) -> int:
    """Print the status once, or show it live."""
    settings = load_settings(find_settings_file(options.config))
    if options.watch:
        from collector.commands.watch import watch

        watch(settings.database_path, settings.sampling.interval)
    elif options.json:
        print(json.dumps(read_status(settings.database_path), indent=2))
    else:
        status = read_status(settings.database_path)
        print("\n".join(format_status(status, colours=sys.stdout.isatty())))
    return 0


def read_status(database: Path, *, count_rows: bool = True) -> Record:
    """Return everything that `status` shows, in the form of `--json`.

    Rows have the columns of their tables; what does not exist is None or an empty list.

    Args:
        database: its path.
        count_rows: whether the rows of all tables are counted, which reads much of a large file.

    Raises:
        DatabaseError: there is no database, or it cannot be read.
    """
    with closing(connect_read_only(database)) as connection, translate_sqlite_errors(database):
        names = fetch(connection, "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
        tables = [row["name"] for row in names if not row["name"].startswith("sqlite_")]
        return {
            "collector": {"version": collector.__version__, "process_id": running_collector(database)},
            "database": {
                "path": str(database),
                "size_bytes": database.stat().st_size,
                "rows": {name: _count_rows(connection, name) for name in tables if count_rows},
            },
            "metrics": next(iter(_newest(connection, "metrics", tables)), None),
            "host_metrics": next(iter(_newest(connection, "host_metrics", tables)), None),
            "gpu_metrics": _newest(connection, "gpu_metrics", tables),
            "llama_metrics": _newest(connection, "llama_metrics", tables),
            "speeds": _rows(connection, "llama_metrics", tables, _LAST_SPEEDS),
            "request_speeds": _rows(connection, "requests", tables, _REQUEST_SPEEDS),
            "health": _rows(
                connection, "collector_health", tables, "SELECT * FROM collector_health ORDER BY name"
            ),
            "backup": _metadata_value(connection, "lastBackup", tables),
            "backup_test": _metadata_value(connection, "lastBackupTest", tables),
            "trouble": _rows(connection, "logs", tables, _LAST_WARNINGS),
        }


def _count_rows(connection: sqlite3.Connection, table: str) -> int | None:
    """Return the number of rows; None if only another program can read the table (a virtual one)."""
    try:
        return int(fetch(connection, f"SELECT count(*) AS n FROM {quote_identifier(table)}")[0]["n"])  # noqa: S608
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_ERROR:
            raise
        return None


def _rows(connection: sqlite3.Connection, table: str, tables: Iterable[str], query: str) -> list[Record]:
    """Return the rows of a query; none if another program created the database without this table.

    Bytes, which only another program stores, are returned as None: JSON has none.
    """
    rows = fetch(connection, query) if table in tables else []
    return [{name: None if isinstance(v, bytes) else v for name, v in row.items()} for row in rows]


def _newest(connection: sqlite3.Connection, table: str, tables: Iterable[str]) -> list[Record]:
    """Return the rows of a table with its newest timestamp.

    Text and bytes, which another program may have stored, are greater than every number.
    """
    newest = f"SELECT max(timestamp) FROM {table} WHERE timestamp < 9e18"  # noqa: S608
    query = f"SELECT * FROM {table} WHERE timestamp = ({newest})"  # noqa: S608
    return _rows(connection, table, tables, query)


def _metadata_value(connection: sqlite3.Connection, key: str, tables: Iterable[str]) -> Any:
    """Return a value of `metadata`; None if it does not exist or is not JSON."""
    rows = _rows(connection, "metadata", tables, f"SELECT value FROM metadata WHERE key = '{key}'")  # noqa: S608
    with suppress(ValueError):
        return json.loads(rows[0]["value"]) if rows else None
    return None
