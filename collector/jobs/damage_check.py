"""Looks for damage in a database that was not closed in good order, while its collector goes on."""

import threading
from contextlib import closing
from pathlib import Path

from collector.database import Database
from collector.database.connection import (
    QUICK_CHECK_MAX_BYTES,
    connect_read_only,
    explained,
    refuse_damage,
)
from collector.errors import DatabaseDamaged, DatabaseError

LOOK_SECONDS = 3600
"""How often it is tried again where it was interrupted, or a failure is told again."""


class DamageCheck:
    """Reads the whole database once after an unclean end.

    Meanwhile rows wait in memory: about a second a GB where the file is in memory already, ten where not.

    Args:
        database: opened; its start has already checked it where it is small.
        stop: ends it early.
    """

    def __init__(self, database: Database, stop: threading.Event) -> None:
        self._path = database.path
        self._is_due = _is_large(database.path) and not _ended_well(database)
        self._stop = stop
        self._damage: DatabaseDamaged | None = None

    def run(self) -> None:
        """Check, if it is still to be done.

        Raises:
            DatabaseDamaged: something does not fit; it is told at every run, for it does not heal.
            DatabaseError: the file cannot be read.
        """
        if self._damage:
            raise self._damage
        if not self._is_due:
            return
        try:
            with closing(connect_read_only(self._path)) as connection, explained(self._path):
                connection.set_progress_handler(self._stop.is_set, 100_000)
                refuse_damage(connection, self._path, "quick_check")
        except DatabaseDamaged as error:
            self._damage = error
            raise
        except DatabaseError:
            if not self._stop.is_set():
                raise
            return
        self._is_due = False


def _is_large(path: Path) -> bool:
    return path.stat().st_size > QUICK_CHECK_MAX_BYTES  # smaller ones were read when they were opened


def _ended_well(database: Database) -> bool:
    """Whether the collector before this one said that it stopped, or there was none."""
    rows = database.query("SELECT state FROM collector_health WHERE name = 'collector'")
    return not rows or rows[0]["state"] == "stopped"
