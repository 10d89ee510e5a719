"""`import`: adds the requests of old logs to the database, while no collector runs."""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from collector.commands.database import open_with_events
from collector.errors import CollectorError
from collector.logs.past.importing import RequestImport
from collector.logs.past.merging import MergeSummary
from collector.parsers.duration import parse_moment
from collector.settings import find_settings_file, load_settings
from collector.text import say

_SECONDS_PER_DAY = 86_400


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `import`."""
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="*",
        type=Path,
        help="a log of llama-server, also compressed (.gz, .xz, .zst); its last line counts as old as it",
    )
    parser.add_argument(
        "--ended",
        metavar="TIME",
        action="append",
        default=[],
        type=parse_moment,
        help="when a process in the file ended, like '2026-11-26 18:30'; once for each process, in order "
        "(for the last one it may be left out)",
    )
    parser.add_argument("--journal", metavar="UNIT", help="unit of systemd in the journal, or container:NAME")
    parser.add_argument(
        "--since",
        metavar="TIME",
        type=parse_moment,
        default=0.0,
        help="read the journal from then on: '2026-11-26 18:30', or 7d for a week ago",
    )


def run(options: argparse.Namespace) -> int:
    """Import what the options name; print a line for each."""
    if not options.files and options.journal is None:
        raise CollectorError("nothing to import: name a log file, or a unit with --journal")
    if options.ended and len(options.files) != 1:
        raise CollectorError("--ended is about the processes of one file: name one file")
    settings = load_settings(find_settings_file(options.config))
    days = settings.retention.requests_max_age_days
    failed = False
    with open_with_events(settings, "Stop it while requests are imported.") as database:
        now = time.time()
        importer = RequestImport(database, now - days * _SECONDS_PER_DAY if days else 0.0, now)
        for file in options.files:
            failed |= not _import(str(file), partial(importer.add_file, file, options.ended))
        if options.journal is not None:
            name = f"journal of {options.journal}"
            failed |= not _import(name, partial(importer.add_journal, options.journal, options.since))
    return int(failed)


def _import(name: str, add: Callable[[], MergeSummary]) -> bool:
    """Import one file or journal and print what was found, or what is wrong; return whether it was read."""
    try:
        summary = add()
    except CollectorError as error:
        say(f"error: {error}", error=True)
        return False
    parts = [f"{summary.added:,} requests added"]
    if summary.without_time:
        parts.append(f"{summary.without_time:,} of them without a time (--ended gives it)")
    if summary.known:
        parts.append(f"{summary.known:,} were there already")
    if summary.too_old:
        parts.append(f"{summary.too_old:,} are older than [retention] requests_max_age_days")
    say(f"{name}: {', '.join(parts)}")
    return True
