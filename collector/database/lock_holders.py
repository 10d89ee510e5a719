"""The processes that lock the database: logged if a lock lasts so long that many rows wait."""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import structlog

LONG_SECONDS = 30
"""A program that holds a lock for less than this is not logged."""

_LOCKS = Path("/proc/locks")


class LockWatch:
    """Logs which processes keep the writer waiting for long, once in each period of waiting.

    Args:
        database: path of the database.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        self._since: float | None = None
        self._is_logged = False

    def record_busy(self) -> None:
        """Record that a commit failed because of a lock."""
        now = time.monotonic()
        self._since = self._since or now
        if now - self._since < LONG_SECONDS or self._is_logged:
            return
        self._is_logged = True
        holders = []
        for process in lock_holders(self._database.stat(), _LOCKS.read_text().splitlines()):
            holder = f"process {process}"
            with suppress(OSError):  # it has ended, or /proc is mounted with hidepid
                holder += f" ({Path(f'/proc/{process}/comm').read_text().strip()})"
            holders.append(holder)
        structlog.get_logger().warning(
            f"rows have waited for {now - self._since:.0f} s because the database is locked by "
            f"{' and '.join(holders) or 'a process that is not visible from here'}: end its transaction; "
            "samples wait in memory until then"
        )

    def record_free(self) -> None:
        """Record that a commit succeeded."""
        self._since, self._is_logged = None, False


def lock_holders(database: os.stat_result, locks: Iterable[str]) -> list[int]:
    """Return the ids of the other processes that hold a lock on a file.

    Args:
        database: device and inode of the file.
        locks: the lines of /proc/locks.
    """
    # A line is for example: `3: POSIX  ADVISORY  READ 8123 fd:01:131090 1073741826 1073742335`
    device = f"{os.major(database.st_dev):02x}:{os.minor(database.st_dev):02x}"
    wanted = f"{device}:{database.st_ino}"
    holders = set()
    for line in locks:
        match line.split():
            case [_, "POSIX" | "OFDLCK", _, _, process, found, *_] if found == wanted and int(process) > 0:
                holders.add(int(process))
    return sorted(holders - {os.getpid()})
