"""`prune`: brings the database within its limits now, while no collector runs."""

import threading
import time

from collector import events
from collector.config import Settings
from collector.database import Database
from collector.database.retention import rewrite, space_of
from collector.errors import DatabaseError, DatabaseInUse
from collector.jobs.prune import Prune, PruneSummary
from collector.own_tables import OWN_TABLES
from collector.progress import Progress
from collector.units import BYTES_PER_MB
from collector.views import VIEWS


def prune_now(settings: Settings, *, vacuum: bool) -> None:
    """Prune once and print what went.

    Args:
        settings: the limits, and which database.
        vacuum: whether the whole file is written anew afterwards.

    Raises:
        DatabaseInUse: a collector runs; it prunes by itself.
        DatabaseError: there is no database, it cannot be used, or cannot be brought below its size.
    """
    path = settings.database_path
    if not path.exists():
        raise DatabaseError(f"there is no database at {path}: nothing to prune")
    started, progress = time.monotonic(), Progress()
    try:
        database = Database(path, OWN_TABLES, VIEWS)
    except DatabaseInUse as error:
        raise DatabaseInUse(f"{error} It prunes every {settings.retention.interval} s by itself.") from error
    with database:
        events.configure(
            settings.logging.level,
            settings.logging.format,
            lambda level, text: database.logs.add(level, text, "collector"),
        )
        prune = Prune(database, OWN_TABLES, settings.retention, threading.Event())
        summary = prune.run(lambda deleted: progress.tell(f"{deleted:,} rows deleted"))
        if vacuum:
            rewrite(database)
        size_bytes = space_of(database).size_bytes
    print(_described(summary, size_bytes, time.monotonic() - started))


def _described(summary: PruneSummary, size_bytes: int, seconds: float) -> str:
    rows = ", ".join(f"{count:,} {table}" for table, count in summary.deleted.items())
    before_mb, after_mb = summary.size_before_bytes / BYTES_PER_MB, size_bytes / BYTES_PER_MB
    return f"deleted {rows or 'nothing'}; {before_mb:,.1f} MB before, {after_mb:,.1f} MB now; {seconds:.1f} s"
