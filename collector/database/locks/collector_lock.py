"""The lock that allows one collector per database: an advisory lock on a file beside it.

It is not on the database file itself, which only SQLite may open in this process. The kernel releases it when
the process ends, in whatever way that happens.
"""

import errno
import fcntl
import os
import stat
import time
from pathlib import Path

from collector.database.locks.holders import describe_process, read_lock_holders
from collector.database.ownership import match_owner
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
        descriptor = self._open()
        try:
            is_locked = _try_lock(descriptor, time.monotonic() + _TIMEOUT_SECONDS)
        except OSError as error:
            os.close(descriptor)
            raise DatabaseError(
                f"{self._path} cannot be locked: {error.strerror}. Some network file systems have no "
                "locks: name a file elsewhere in [database] path."
            ) from error
        if not is_locked:
            holder = _describe_holder(descriptor, self._path)
            os.close(descriptor)
            raise DatabaseInUse(f"{holder} Stop it first, or give this collector another [database] path.")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor

    def _open(self) -> int:
        """Open the lock file, creating it if it is missing.

        Whoever may write the directory could put a link to another file in its place, which root would
        truncate: links are not followed, and the file must have no other name.

        Raises:
            DatabaseError: it cannot be opened, or is not a file of its own.
        """
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(self._path, flags)
            except FileNotFoundError:
                descriptor = os.open(self._path, flags | os.O_CREAT, 0o644)
                match_owner(self._path)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise DatabaseError(f"{self._path} is a symbolic link: remove it") from error
            raise DatabaseError(
                f"cannot write {self._path}: {error.strerror}. The collector must be able to write the "
                "directory of its database: change its owner or mode, or [database] path."
            ) from error
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            os.close(descriptor)
            raise DatabaseError(f"{self._path} is not a file of its own: remove it")
        return descriptor

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


def _describe_holder(descriptor: int, path: Path) -> str:
    """Return a sentence about who holds the lock.

    The process that the file names may have ended long ago, while another program, such as a backup tool,
    holds a lock of its own on the file: then the kernel's list of locks tells who it is.
    """
    named = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
    holders = read_lock_holders(os.fstat(descriptor))
    if named.isdigit() and (int(named) in holders or (not holders and Path(f"/proc/{named}").exists())):
        return f"another collector (process {named}) writes this database."
    if holders:
        return f"{', '.join(map(describe_process, holders))} holds a lock on {path}."
    return f"another program, which cannot be seen from here, holds a lock on {path}."


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
