"""Detection of another file at the database's path.

SQLite keeps the file open that it opened. When that file is renamed, removed or replaced, SQLite only
reports "readonly database", and does so forever; what happens during a commit it does not detect at all.
So the collector compares device and inode itself, before and after each transaction.

What follows a detection, step by step, for `mv llama-dashboard.db old.db`:

1. The next flush raises DatabaseReplaced (`FileWatch`); its rows go back into the buffer.
2. `Writer` creates a `Replacement`, and each further flush attempt fails in the same way.
3. If the file comes back (`mv old.db llama-dashboard.db`), the next flush succeeds, and the
   `Replacement` is discarded: nothing has happened.
4. Otherwise `Replacement.is_ready` becomes true after `UNCHANGED_SECONDS`. The daemon then stops without
   flushing, and the supervisor starts another one with whatever is at the path now, here an empty
   database, and with the rows that wait (`collector/daemon/supervisor.py`).
"""

import time
from pathlib import Path

import structlog

from collector.database.connection import check_writable
from collector.errors import DatabaseError, DatabaseReplaced

UNCHANGED_SECONDS = 4.0
"""A new file at the path is used when it has not changed for so long: it may still be copied there."""


class FileWatch:
    """Comparison of the file at the path with the file that was opened, by device and inode.

    Args:
        path: path of the database, which has just been opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opened = _identity(path)

    def check_same_file(self) -> None:
        """Check that the file at the path is the one that was opened.

        Raises:
            DatabaseReplaced: there is another file at the path, or none.
        """
        found = _identity(self._path)
        if found != self._opened:
            what = f"another file is at {self._path}" if found else f"{self._path} is gone"
            raise DatabaseReplaced(
                f"{what}: the database that was in use was moved, removed or replaced. Samples wait in "
                f"memory, and are written into what is found at that path in a few seconds"
            )


class Replacement:
    """The file, or its absence, at the path of a database that was moved, removed, replaced or damaged.

    Args:
        path: path of the database.
        error: the error of the flush that detected it.

    Attributes:
        error: the error of the last flush.
    """

    def __init__(self, path: Path, error: DatabaseError) -> None:
        self._path = path
        self.error = error
        self._found = _identity_and_size(path)
        self._unchanged_since = time.monotonic()
        self._is_logged = False

    def is_ready(self) -> bool:
        """Return whether the collector can switch to it; to be called every few seconds.

        The file must not have changed for `UNCHANGED_SECONDS` (somebody may still be copying a backup
        there). If there is no file, it must be possible to create one: a file system that is not mounted
        yet leaves a directory in which the collector may not write.
        """
        found = _identity_and_size(self._path)
        if found != self._found:
            self._found, self._unchanged_since = found, time.monotonic()
        if time.monotonic() - self._unchanged_since < UNCHANGED_SECONDS:
            return False
        if found is not None:
            return True
        try:
            check_writable(self._path)
        except DatabaseError as error:
            if not self._is_logged:
                self._is_logged = True
                structlog.get_logger().error(f"samples wait in memory: {error}")
            return False
        return True


def _identity(path: Path) -> tuple[int, int] | None:
    found = _identity_and_size(path)
    return found[:2] if found else None


def _identity_and_size(path: Path) -> tuple[int, int, int] | None:
    """Return device, inode and size of a file; None if there is none that can be examined."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size
