"""`requests`: shows the requests that llama-server answered, newest last."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from collector.commands.status_text import Colours
from collector.database.connection import connect_read_only, fetch, translate_sqlite_errors
from collector.parsers.duration import parse_duration
from collector.settings import find_settings_file, load_settings
from collector.text import printable

_FOLLOW_SECONDS = 1.0
_MAX_SHOWN = 10_000

Record = dict[str, Any]

_QUERY = """
    SELECT requests.*,
      CASE WHEN generated_tokens > 1 THEN (generated_tokens - 1) * 1000.0 / nullif(generation_ms, 0) END
        AS tokens_per_second
    FROM requests WHERE timestamp >= :since AND id > :after {conditions}
    ORDER BY timestamp DESC, id DESC LIMIT :limit"""

_HEADINGS = (
    *("ended", "model", "outcome", "queue", "first token", "total"),
    *("prompt", "cached", "generated", "tokens/s", "beside"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `requests`."""
    parser.add_argument(
        "--since",
        type=parse_duration,
        default="1h",
        metavar="TIME",
        help="length of the period until now: 30m, 24h, 7d, 4w; 1h if not given",
    )
    parser.add_argument("--model", metavar="NAME", help="only requests of this model")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--slow", action="store_true", help="the slowest ones, the slowest last")
    which.add_argument("--failed", action="store_true", help="only those that failed, with their error")
    parser.add_argument("--follow", action="store_true", help="go on with new ones until Ctrl-C")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="at most this many (default: 50)")
    parser.add_argument("--json", action="store_true", help="one JSON object for each, with all columns")


def run(options: argparse.Namespace) -> int:
    """Print the requests that the options ask for."""
    database = load_settings(find_settings_file(options.config)).database_path
    since = time.time() - options.since
    shown = read_requests(database, since, options)
    if options.slow:
        shown.sort(key=lambda row: row["total_ms"] or 0)
        shown = shown[-options.limit :]
    colours = Colours(enabled=sys.stdout.isatty())
    _show(shown, options, colours, heading=True)
    if not shown and not options.json and not options.follow:
        print("no request ended in this time. Is llama-server's log read? llama-collector check says so")
    newest = max((row["id"] for row in shown), default=0)
    while options.follow:
        time.sleep(_FOLLOW_SECONDS)
        new = read_requests(database, since, options, newest)
        _show(new, options, colours, heading=False)
        newest = max([newest, *(row["id"] for row in new)])
    return 0


def read_requests(database: Path, since: float, options: argparse.Namespace, after: int = 0) -> list[Record]:
    """Return rows of `requests` with their speed, the oldest first.

    Args:
        database: its path.
        since: Unix seconds of the earliest end.
        options: which ones.
        after: only rows with a greater id.

    Raises:
        DatabaseError: there is no database, or it cannot be read.
    """
    conditions = ""
    if options.model is not None:
        conditions += " AND +model = :model"
    if options.failed:
        conditions += " AND +outcome IN ('error', 'server_ended')"
    parameters = {
        "since": int(since),
        "after": after,
        "model": options.model,
        "limit": _MAX_SHOWN if options.slow else max(1, options.limit),
    }
    with closing(connect_read_only(database)) as connection, translate_sqlite_errors(database):
        if not fetch(connection, "SELECT 1 FROM sqlite_master WHERE name = 'requests'"):
            return []  # an older version wrote it
        rows = connection.execute(_QUERY.format(conditions=conditions), parameters)
        names = [description[0] for description in rows.description]
        return [dict(zip(names, row, strict=True)) for row in rows][::-1]


def _show(rows: Sequence[Record], options: argparse.Namespace, colours: Colours, *, heading: bool) -> None:
    """Print rows as JSON lines or as a table."""
    if options.json:
        for row in rows:
            print(json.dumps(row, default=repr))
        sys.stdout.flush()
        return
    lines = [_cells(row) for row in rows]
    if heading and rows:
        print(colours.dim(_line(_HEADINGS)))
    for row, cells in zip(rows, lines, strict=True):
        text = _line(cells)
        print(text if row["outcome"] in ("finished", "no_generation") else colours.red(text))
        if row["error"]:
            print(f"    {printable(row['error'])}")
    sys.stdout.flush()


def _line(cells: Sequence[str]) -> str:
    time_, model, outcome, *numbers = cells
    return f"{time_:<15} {model[:24]:<24} {outcome:<13}" + "".join(f"{cell:>12}" for cell in numbers)


def _cells(row: Record) -> tuple[str, ...]:
    """Return the cells of a row; what is not known is a dash."""
    return (
        time.strftime("%m-%d %H:%M:%S", time.localtime(row["timestamp"])),
        printable(row["model"] or "-"),
        printable(row["outcome"]),
        _seconds(row["queue_ms"]),
        _seconds(row["prompt_ms"]),
        _seconds(row["total_ms"]),
        *(_number(row[name]) for name in ("prompt_tokens", "cached_tokens", "generated_tokens")),
        _number(row["tokens_per_second"], 1),
        _number(row["other_requests"]),
    )


def _number(value: object, digits: int = 0) -> str:
    return f"{value:,.{digits}f}" if isinstance(value, int | float) else "-"


def _seconds(milliseconds: object) -> str:
    return f"{milliseconds / 1000:,.2f} s" if isinstance(milliseconds, int | float) else "-"
