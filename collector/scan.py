"""`scan`: reads the models directories now, while no collector runs."""

import sys
import time

from collector import events
from collector.config import Settings
from collector.database import Database
from collector.errors import DatabaseInUse
from collector.jobs.scan_models import ModelScan
from collector.own_tables import OWN_TABLES
from collector.views import VIEWS

_PROGRESS_AFTER_SECONDS = 1.0


def scan_now(settings: Settings) -> None:
    """Scan once and print what was found.

    Raises:
        DatabaseInUse: a collector runs; it scans by itself.
        DatabaseError: the database cannot be used.
    """
    try:
        database = Database(settings.database_path, OWN_TABLES, VIEWS)
    except DatabaseInUse as error:
        interval = settings.models.rescan_interval
        hint = (
            f"It scans every {interval} s by itself."
            if interval
            else "It does not scan: [models] rescan_interval is 0."
        )
        raise DatabaseInUse(f"{error} {hint}") from error
    with database:
        events.configure(
            settings.logging.level,
            settings.logging.format,
            lambda level, text: database.logs.add(level, text, "collector"),
        )
        summary = ModelScan(database, settings.models_directories).run(_Progress())
    print(
        f"{summary.found} models: {summary.added} new, {summary.changed} changed, {summary.removed} removed; "
        f"{summary.unreadable} unreadable files, {summary.waiting} left for later; {summary.seconds:.1f} s"
    )


class _Progress:
    """One line on a terminal, once the scan takes longer than a second."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._is_shown = sys.stderr.isatty()

    def __call__(self, done: int, total: int, path: str) -> None:
        if self._is_shown and time.monotonic() - self._started > _PROGRESS_AFTER_SECONDS:
            end = "\r" if path else "\n"
            shown = "".join(c if c.isprintable() else "?" for c in path)[-60:]
            print(f"\x1b[2K{done} of {total} files read  {shown}", end=end, file=sys.stderr, flush=True)
