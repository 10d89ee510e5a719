"""The report as one HTML page with its styles and plots: nothing is loaded, no script runs."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from html import escape
from pathlib import Path

import collector
from collector.database.connection import connect_read_only, fetch, translate_sqlite_errors
from collector.errors import DatabaseError
from collector.report.figures import Cells, Figure, figures
from collector.report.period import Period, local
from collector.text import format_duration, printable
from collector.views import VIEWS

_STYLE = """
body { max-width: 60em; margin: 2em auto; padding: 0 1em; font: 15px/1.45 system-ui, sans-serif; color: #222 }
h1 { margin-bottom: 0 } h2 { margin: 1.6em 0 0; font-size: 1.15em } p { margin: .2em 0 .6em; color: #555 }
table { border-collapse: collapse; font-size: .87em; width: 100% } svg { width: 100%; height: auto }
th, td { text-align: left; padding: .2em .8em .2em 0; border-bottom: 1px solid #ddd; vertical-align: top }
td { overflow-wrap: anywhere }
"""
# The browser enforces it: no script runs, nothing is loaded.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def make_page(database: Path, period: Period) -> str:
    """Return the page, which begins with the oldest data of the period; without any data, it says so.

    Raises:
        DatabaseError: there is no database, it cannot be read, or it has no views yet.
    """
    with closing(connect_read_only(database)) as connection, translate_sqlite_errors(database):
        _require_views(connection, database)
        period = _without_empty_start(connection, period)
        sections = [_section(figure) for figure in figures(connection, period)]
        return _page(period, "".join(sections) or _empty_page(connection))


def _require_views(connection: sqlite3.Connection, database: Path) -> None:
    present = {row["name"] for row in fetch(connection, "SELECT name FROM sqlite_master WHERE type = 'view'")}
    if missing := [view.name for view in VIEWS if view.name not in present]:
        raise DatabaseError(
            f"{database} has no view {missing[0]}: the collector adds it when it starts (llama-collector run)"
        )


def _without_empty_start(connection: sqlite3.Connection, period: Period) -> Period:
    """Return the period from its oldest data on: the time before would be empty in every plot."""
    oldest = [
        row["oldest"]
        for table in ("metrics", "logs", "llama_metrics", "model_events")
        for row in fetch(
            connection,
            f"SELECT min(timestamp) AS oldest FROM {table} WHERE timestamp > ?1 AND timestamp <= ?2",  # noqa: S608
            (period.begin, period.end),
        )
        if row["oldest"] is not None
    ]
    return Period(min(oldest) - 1, period.end) if oldest else period


def _page(period: Period, content: str) -> str:
    title = f"llama.cpp from {local(period.begin)} to {local(period.end)}"
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
<title>{title}</title><style>{_STYLE}</style></head><body>
<h1>llama.cpp, the last {format_duration(period.seconds)}</h1>
<p>{local(period.begin)} to {local(period.end)}, local time; by llama-collector {collector.__version__}</p>
{content}
</body></html>
"""


def _empty_page(connection: sqlite3.Connection) -> str:
    ((newest,),) = (row.values() for row in fetch(connection, "SELECT max(timestamp) FROM metrics"))
    known = "There is none at all" if newest is None else f"The newest sample is of {local(newest)}"
    return f"<p>Nothing was sampled in this period. {known}.</p>"


def _section(figure: Figure) -> str:
    table = _table(figure.heads, figure.rows) if figure.rows else ""
    return f"<section><h2>{figure.title}</h2><p>{figure.note}</p>{figure.plot}{table}</section>\n"


def _table(heads: Cells, rows: Sequence[Cells]) -> str:
    lines = "".join(f"<tr>{''.join(f'<td>{_escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    return f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>\n{lines}</table>"


def _escape(text: str) -> str:
    """Return text from outside as HTML."""
    return escape(printable(text))
