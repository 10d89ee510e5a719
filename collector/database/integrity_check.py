"""Looks for damage in a database that was not closed in good order, while its collector goes on."""

import threading
from contextlib import closing
from pathlib import Path

from collector.database import Database
from collector.database.connection import (
    QUICK_CHECK_MAX_BYTES,
    check_integrity,
    connect_read_only,
    translate_sqlite_errors,
)
from collector.errors import DatabaseDamaged, DatabaseError

LOOK_SECONDS = 3600
"""How often it is tried again where the file could not be read."""


class DamageCheck:
    """Reads the whole database once after an unclean end; where it was interrupted, at the next start.

    Meanwhile rows wait in memory: about a second a GB where the file is in memory already, ten where not.

    Args:
        database: opened; its start has already checked it where it is small.
        stop: ends it early.
    """

    def __init__(self, database: Database, stop: threading.Event) -> None:
        self._path = database.path
        self.is_due = _is_large(database.path) and not _ended_well(database)
        self.damage: DatabaseDamaged | None = None
        self._stop = stop

    def run(self) -> None:
        """Check, if it is still to be done.

        Raises:
            DatabaseDamaged: something does not fit; then it stays to be done.
            DatabaseError: the file cannot be read.
        """
        if not self.is_due:
            return
        try:
            with closing(connect_read_only(self._path)) as connection, translate_sqlite_errors(self._path):
                connection.set_progress_handler(self._stop.is_set, 100_000)
                check_integrity(connection, self._path, "quick_check")
        except DatabaseDamaged as error:
            self.damage = error
            raise
        except DatabaseError:
            if not self._stop.is_set():
                raise
            return
        self.is_due = False


def _is_large(path: Path) -> bool:
    return path.stat().st_size > QUICK_CHECK_MAX_BYTES  # smaller ones were read when they were opened


def _ended_well(database: Database) -> bool:
    """Whether the collector before this one said that it stopped, or there was none."""
    rows = database.query("SELECT state FROM collector_health WHERE name = 'collector'")
    return not rows or rows[0]["state"] == "stopped"
