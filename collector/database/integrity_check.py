"""Search for damage in a large database, while its collector runs.

A process that is killed, or a machine that loses power, can leave a damaged file if the disk does not keep
its promises. Files up to `QUICK_CHECK_MAX_BYTES` are checked each time they are opened. Larger ones are
checked once after a run that did not stop cleanly: it takes about a second per GB if the file is in memory,
ten if it is not, and rows wait in the buffer meanwhile.
"""

import threading
from collections.abc import Callable
from contextlib import closing

from collector.database import Database
from collector.database.connection import (
    QUICK_CHECK_MAX_BYTES,
    check_integrity,
    connect_read_only,
    translate_sqlite_errors,
)
from collector.errors import DatabaseDamaged, Stopped

RETRY_SECONDS = 3600
"""How often a check is tried again if the file could not be read."""


class IntegrityCheck:
    """The check of one database, at most once in a run of the collector.

    Args:
        database: the open database.
        stop: ends the check early; it is then due at the next start.
        report: called with `ok` or `damaged` when the check has ended.
        is_due: whether the file is to be checked.

    Attributes:
        is_due: whether the file is still to be checked.
        damage: what was found, until the collector ends because of it.
    """

    def __init__(
        self, database: Database, stop: threading.Event, report: Callable[[str], object], *, is_due: bool
    ) -> None:
        self._path = database.path
        self._stop = stop
        self._report = report
        self.is_due = is_due
        self.damage: DatabaseDamaged | None = None

    def run(self) -> None:
        """Check the file if that is due.

        Raises:
            DatabaseDamaged: there is damage; the check is due again at the next start.
            DatabaseError: the file cannot be read; the check stays due.
        """
        if not self.is_due:
            return
        try:
            with closing(connect_read_only(self._path)) as connection, translate_sqlite_errors(self._path):
                connection.set_progress_handler(self._stop.is_set, 100_000)
                check_integrity(connection, self._path, "quick_check")
        except DatabaseDamaged as error:
            self.damage = error
            self._report("damaged")
            raise
        except Stopped:
            return
        self.is_due = False
        self._report("ok")


def is_checked_when_opened(database: Database) -> bool:
    """Return whether the file is so small that opening it has checked it in full."""
    return database.path.stat().st_size <= QUICK_CHECK_MAX_BYTES
