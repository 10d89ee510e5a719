"""Logs which processes lock the database, if a lock lasts so long that many rows wait."""

import time
from pathlib import Path

import structlog

from collector.database.locks.holders import describe_process, read_lock_holders

LONG_SECONDS = 30
"""A program that holds a lock for less than this is not logged."""


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
        holders = [describe_process(process) for process in read_lock_holders(self._database.stat())]
        structlog.get_logger().warning(
            f"rows have waited for {now - self._since:.0f} s because the database is locked by "
            f"{' and '.join(holders) or 'a process that is not visible from here'}: end its transaction; "
            "samples wait in memory until then"
        )

    def record_free(self) -> None:
        """Record that a commit succeeded."""
        self._since, self._is_logged = None, False
