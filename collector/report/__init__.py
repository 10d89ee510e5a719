"""`report`: one page about a period, with plots, that opens anywhere and loads nothing."""

import sys
import time
from pathlib import Path

from collector.errors import CollectorError
from collector.report.page import make_page
from collector.report.period import Period


def write_report(database: Path, seconds: int, output: Path | None) -> None:
    """Write the page about the seconds until now.

    Args:
        database: the file that is read.
        seconds: how long the period is.
        output: a file whose name ends in .html; None for standard output or, where that is a terminal, a new
            file in the working directory, which is named.

    Raises:
        CollectorError: the file cannot be written, or the package that draws is not installed.
        DatabaseError: there is no database, or it cannot be read.
    """
    now = int(time.time())
    if output is None and not sys.stdout.isatty():
        sys.stdout.buffer.write(make_page(database, Period(now - seconds, now)).encode())
        return
    file = output or Path(time.strftime("llama-report-%Y%m%d-%H%M%S.html", time.localtime(now)))
    _refuse_other_names(file)
    page = make_page(database, Period(now - seconds, now))
    try:
        file.write_bytes(page.encode())
    except OSError as error:
        raise CollectorError(f"{file} cannot be written: {error.strerror}: name another --output") from error
    if output is None:
        print(f"the report is in {file}")


def _refuse_other_names(file: Path) -> None:
    """An earlier report may be written over; a slip must not hit a database or settings."""
    if file.suffix.lower() not in (".html", ".htm"):
        raise CollectorError(f"{file}: the report is a page: let --output end in .html")
