"""`prune`: deletes the oldest rows beyond the retention limits now, while no collector runs."""

import argparse
import threading
import time

from collector.catalog import OWN_TABLES
from collector.commands.database import open_with_events
from collector.database.space import read_space, rewrite
from collector.errors import DatabaseError
from collector.history.retention import Prune
from collector.schema import BYTES_PER_MB
from collector.settings import Settings, find_settings_file, load_settings
from collector.text import Progress, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `prune`."""
    parser.add_argument(
        "--vacuum",
        action="store_true",
        help="also rewrite the whole file, which releases the space of deleted rows",
    )


def run(options: argparse.Namespace) -> int:
    """Prune the database that the settings name."""
    prune_now(load_settings(find_settings_file(options.config)), vacuum=options.vacuum)
    return 0


def prune_now(settings: Settings, *, vacuum: bool) -> None:
    """Prune once and print how many rows were deleted.

    Args:
        settings: name the database and the limits.
        vacuum: whether to rewrite the whole file afterwards, without free pages.

    Raises:
        DatabaseInUse: a collector runs; it prunes by itself.
        DatabaseError: there is no database, it cannot be used, or it cannot be made small enough.
    """
    path = settings.database_path
    if not path.exists():
        raise DatabaseError(f"there is no database at {path}: nothing to prune")
    started, progress = time.monotonic(), Progress()
    hint = f"It prunes every {settings.retention.interval} s by itself."
    with open_with_events(settings, hint) as database:
        prune = Prune(database, OWN_TABLES, settings.retention, threading.Event())
        summary = prune.run(lambda deleted: progress.show(f"{deleted:,} rows deleted"))
        if vacuum:
            rewrite(database)
        after_mb = read_space(database).size_bytes / BYTES_PER_MB
    rows = ", ".join(f"{count:,} {table}" for table, count in summary.deleted.items())
    before_mb, seconds = summary.size_before_bytes / BYTES_PER_MB, time.monotonic() - started
    say(f"deleted {rows or 'nothing'}; {before_mb:,.1f} MB before, {after_mb:,.1f} MB now; {seconds:.1f} s")
