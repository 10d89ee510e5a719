"""The report as one HTML page with its styles and plots: nothing is loaded, no script runs."""

import sqlite3
from contextlib import closing
from html import escape
from pathlib import Path

import collector
from collector.database.connection import connect_read_only, fetch, translate_sqlite_errors
from collector.errors import DatabaseError
from collector.report.figures import Figure, figures
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
# The browser enforces this policy: no script runs, nothing is loaded.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def make_page(database: Path, period: Period) -> str:
    """Return the page about a period; without any data in it, the page says when the newest sample is.

    The page begins with the oldest data of the period: the time before would be empty in every plot.

    Raises:
        DatabaseError: there is no database, it cannot be read, or it has no views yet.
    """
    with closing(connect_read_only(database)) as connection, translate_sqlite_errors(database):
        _require_views(connection, database)
        if (oldest := _oldest_timestamp(connection, period)) is not None:
            period = Period(oldest - 1, period.end)
        content = "".join(
            _section(figure) for figure in figures(connection, period) if figure.plot or figure.rows
        )
        if not content:
            (row,) = fetch(connection, "SELECT max(timestamp) AS newest FROM metrics")
            newest = row["newest"]
            known = "There is none at all" if newest is None else f"The newest sample is of {local(newest)}"
            content = f"<p>Nothing was sampled in this period. {known}.</p>"
    begin, end = local(period.begin), local(period.end)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
<title>llama.cpp from {begin} to {end}</title><style>{_STYLE}</style></head><body>
<h1>llama.cpp, the last {format_duration(period.seconds)}</h1>
<p>{begin} to {end}, local time; by llama-collector {collector.__version__}</p>
{content}
</body></html>
"""


def _require_views(connection: sqlite3.Connection, database: Path) -> None:
    """Raise DatabaseError if a view is missing, as after an upgrade before the collector has started."""
    present = {row["name"] for row in fetch(connection, "SELECT name FROM sqlite_master WHERE type = 'view'")}
    if missing := [view.name for view in VIEWS if view.name not in present]:
        raise DatabaseError(
            f"{database} has no view {missing[0]}: the collector adds it when it starts (llama-collector run)"
        )


def _oldest_timestamp(connection: sqlite3.Connection, period: Period) -> int | None:
    """Return the time of the oldest data of a period; None without any."""
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
    return min(oldest, default=None)


def _section(figure: Figure) -> str:
    """Return a figure as HTML; only the cells of its table contain text from outside."""
    table = ""
    if figure.rows:
        heads = "".join(f"<th>{head}</th>" for head in figure.heads)
        lines = "".join(
            f"<tr>{''.join(f'<td>{escape(printable(cell))}</td>' for cell in row)}</tr>\n"
            for row in figure.rows
        )
        table = f"<table><tr>{heads}</tr>\n{lines}</table>"
    return f"<section><h2>{figure.title}</h2><p>{figure.note}</p>{figure.plot}{table}</section>\n"
