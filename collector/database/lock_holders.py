"""Who has the database locked: told where a lock lasts so long that rows pile up."""

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import structlog

LONG_SECONDS = 30
"""A reader may hold its transaction for this long without being named in `logs`."""

_LOCKS = Path("/proc/locks")


class LockWatch:
    """Names whoever keeps the writer waiting for long, once an episode.

    Args:
        database: the file.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        self._since: float | None = None
        self._is_told = False

    def locked(self) -> None:
        """A commit was refused because of a lock."""
        now = time.monotonic()
        self._since = self._since or now
        if now - self._since >= LONG_SECONDS and not self._is_told:
            self._is_told = True
            structlog.get_logger().warning(
                f"rows have waited for {now - self._since:.0f} s because the database is locked by "
                f"{self._holders()}: end its transaction; what is sampled meanwhile waits in memory"
            )

    def free(self) -> None:
        """A commit went through."""
        self._since, self._is_told = None, False

    def _holders(self) -> str:
        status = self._database.stat()
        names = [_name(process) for process in lock_holders(status, _LOCKS.read_text().splitlines())]
        return " and ".join(names) or "a process that cannot be seen from here"


def lock_holders(database: os.stat_result, locks: Iterable[str]) -> list[int]:
    """The processes beside this one that hold a lock on a file.

    Args:
        database: device and inode of the file.
        locks: the lines of /proc/locks.
    """
    return sorted(set(_holders(database, locks)) - {os.getpid()})


def _holders(database: os.stat_result, locks: Iterable[str]) -> Iterator[int]:
    device = f"{os.major(database.st_dev):02x}:{os.minor(database.st_dev):02x}"
    place = f"{device}:{database.st_ino}"
    for line in locks:
        match line.split():
            case [_, "POSIX" | "OFDLCK", _, _, process, found, *_] if found == place and int(process) > 0:
                yield int(process)


def _name(process: int) -> str:
    try:
        return f"process {process} ({Path(f'/proc/{process}/comm').read_text().strip()})"
    except OSError:  # it has ended, or is hidden
        return f"process {process}"
