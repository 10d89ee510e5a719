"""`report`: writes an HTML page with plots of a period; it opens in any browser and loads nothing."""

import argparse
import sys
import time
from pathlib import Path

from collector.errors import CollectorError
from collector.parsers.duration import parse_duration
from collector.settings import find_settings_file, load_settings
from collector.text import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `report`."""
    parser.add_argument(
        "--since",
        type=parse_duration,
        default="24h",
        metavar="TIME",
        help="length of the period until now: 30m, 24h, 7d, 4w; 24h if not given",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE.html",
        help="write it to this file; else to standard output, or to a new file where that is a terminal",
    )


def run(options: argparse.Namespace) -> int:
    """Write a report of the database that the settings name."""
    settings = load_settings(find_settings_file(options.config))
    write_report(settings.database_path, options.since, options.output)
    return 0


def write_report(database: Path, seconds: int, output: Path | None) -> None:
    """Write a page about a period that ends now.

    Args:
        database: its path.
        seconds: length of the period.
        output: a file whose name ends in .html; None for standard output or, where that is a terminal, a new
            file in the working directory, whose name is printed.

    Raises:
        CollectorError: the file cannot be written, or the package that draws plots is not installed.
        DatabaseError: there is no database, or it cannot be read.
    """
    # Imported here: the package that draws plots is optional, and `report --help` works without it.
    from collector.report.page import make_page
    from collector.report.period import Period

    now = int(time.time())
    period = Period(now - seconds, now)
    if output is None and not sys.stdout.isatty():
        sys.stdout.buffer.write(make_page(database, period).encode())
        return
    file = output or Path(time.strftime("llama-report-%Y%m%d-%H%M%S.html", time.localtime(now)))
    if file.suffix.lower() not in (".html", ".htm"):  # an earlier report is replaced, never a database
        raise CollectorError(f"{file}: the report is a page: let --output end in .html")
    page = make_page(database, period)
    try:
        file.write_bytes(page.encode())
    except OSError as error:
        raise CollectorError(f"{file} cannot be written: {error.strerror}: name another --output") from error
    if output is None:
        say(f"the report is in {file}")
