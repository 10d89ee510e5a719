"""The lock that allows one collector per database: an advisory lock on a file beside it.

It is not on the database file itself, which only SQLite may open in this process. The kernel releases it when
the process ends, in whatever way that happens.
"""

import fcntl
import os
import time
from pathlib import Path

from collector.errors import DatabaseError, DatabaseInUse

_TIMEOUT_SECONDS = 0.5  # `status` holds the lock for a moment while it checks who has it


class CollectorLock:
    """The exclusive right to write one database.

    Args:
        database: path of the database; symbolic links to one file share its lock.
    """

    def __init__(self, database: Path) -> None:
        self._path = lock_path(database)
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Acquire the lock and write our process id into the lock file.

        Raises:
            DatabaseInUse: another collector holds the lock.
            DatabaseError: the lock file cannot be created.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise DatabaseError(
                f"cannot write {self._path}: {error.strerror}. The collector must be able to write the "
                "directory of its database: change its owner or mode, or [database] path."
            ) from error
        if not _try_lock(descriptor, time.monotonic() + _TIMEOUT_SECONDS):
            owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise DatabaseInUse(
                f"another collector (process {owner}) writes this database. Stop it first, or give this one "
                "another [database] path."
            )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Release the lock.

        The file stays: if it were removed, a collector that has just opened it and another one that creates
        it again would both hold a lock.
        """
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def lock_path(database: Path) -> Path:
    """Return the path of the lock file of a database."""
    resolved = database.resolve()
    return resolved.with_name(resolved.name + ".lock")


def running_collector(database: Path) -> int | None:
    """Return the process id of the collector that writes this database now; None if there is none."""
    try:
        descriptor = os.open(lock_path(database), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if _try_lock(descriptor, 0, fcntl.LOCK_SH):
            return None
        return int(os.pread(descriptor, 32, 0) or b"0") or None
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, deadline: float, operation: int = fcntl.LOCK_EX) -> bool:
    """Lock a file, trying again until a time of the monotonic clock; return whether that succeeded."""
    while True:
        try:
            fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)
        else:
            return True
