"""Whether the file at the database's path is still the one that was opened.

Where it is not, SQLite only says that the database is read-only, and that for good; and what happens while
a transaction is committed it does not see.
"""

import time
from pathlib import Path

import structlog

from collector.database.connection import check_writable
from collector.errors import DatabaseError, DatabaseReplaced

STILL_SECONDS = 4.0
"""What somebody has just put at the path is left alone for so long: it may still be copied there."""

_Place = tuple[int, int]


class FileWatch:
    """Knows the file that was opened by its device and inode.

    Args:
        path: of the database, which has just been opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opened = _place(path)

    def check_same_file(self) -> None:
        """To be asked before a transaction, and after it.

        Raises:
            DatabaseReplaced: there is another file at the path, or none.
        """
        found = _place(self._path)
        if found != self._opened:
            what = f"another file lies at {self._path}" if found else f"{self._path} is gone"
            raise DatabaseReplaced(
                f"{what}: the database that was in use was moved, removed or replaced. What is sampled waits "
                f"in memory, and goes into what is found at that path in a few seconds"
            )


class Replacement:
    """What lies at the path of a database that is no longer the one that was opened.

    Args:
        path: of the database.

    Attributes:
        error: what the last attempt to write has met.
    """

    def __init__(self, path: Path, error: DatabaseError) -> None:
        self._path = path
        self.error = error
        self._found = self._look()
        self._since = time.monotonic()
        self._is_told = False

    def is_ready(self) -> bool:
        """Whether it can be gone over to; to be asked every few seconds.

        It must not have changed lately, and where there is nothing, a file must be possible.
        """
        return self._lies_still() and (self._found is not None or self._can_be_made())

    def _lies_still(self) -> bool:
        found = self._look()
        if found != self._found:
            self._found, self._since = found, time.monotonic()
        return time.monotonic() - self._since >= STILL_SECONDS

    def _can_be_made(self) -> bool:
        try:
            check_writable(self._path)
        except DatabaseError as error:
            if not self._is_told:
                self._is_told = True
                structlog.get_logger().error(f"what is sampled waits in memory: {error}")
            return False
        return True

    def _look(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_size


def _place(path: Path) -> _Place | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
