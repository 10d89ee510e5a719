"""The trial restore: whether the newest backup can be restored is tested from time to time."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from collector.backups.background import (
    CLOCK_TOLERANCE_SECONDS,
    DueJob,
    raise_if_stopped,
    run_at_lowest_priority,
)
from collector.backups.directory import BackupDirectory
from collector.backups.identity import read_identity
from collector.backups.verification import Contents
from collector.database import Database
from collector.errors import BackupFailed, CollectorError, DatabaseBusy

LAST_TEST_KEY = "lastBackupTest"
"""Key in `metadata`: `time`, `file` and `verdict` of the last trial restore, and `rows` of a good backup."""

_GOOD = "ok"
"""Verdict about a backup that can be restored; any other verdict is the error."""


class TrialRestore(DueJob):
    """Restores the newest backup to a temporary file and checks that samples are in it.

    It is due again some days after a good result. After a bad one it is due at once, and the job's retry
    decides when: so the state remains failed until there is a good backup.

    Args:
        database: where the result is recorded.
        directory: of the backups.
        days: between two trial restores.
        restore: makes a database of a backup; called with the paths of the backup and of the new file.
        stop: ends it early.
        clock: returns Unix seconds.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - none of them belongs to another
        self,
        database: Database,
        directory: BackupDirectory,
        days: int,
        restore: Callable[[Path, Path], Contents],
        stop: threading.Event,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(stop)
        self._database = database
        self._directory = directory
        self._seconds = days * 86_400
        self._restore = restore
        self._clock = clock

    def _run_if_due(self) -> None:
        backups = self._directory.of_history(read_identity(self._database).history)
        if not backups:
            return
        now = self._clock()
        stored = self._database.meta.get(LAST_TEST_KEY)
        last = stored if isinstance(stored, dict) else {}
        if last.get("verdict") != _GOOD or not -CLOCK_TOLERANCE_SECONDS <= now - last["time"] < self._seconds:
            self._test(backups[-1], now)

    def _test(self, backup: Path, now: float) -> None:
        """Restore a backup on trial and record the result."""
        result = {"time": now, "file": str(backup)}
        try:
            with self._directory.trial_file(backup) as trial:
                rows = run_at_lowest_priority(lambda: self._restore(backup, trial).rows)
            raise_if_stopped(self._stop)
            if not rows.get("metrics"):
                raise BackupFailed(f"{backup} can be restored, and there is no sample in it")
        except DatabaseBusy:
            raise
        except CollectorError as error:
            raise_if_stopped(self._stop)  # an interrupted restore says nothing about the backup
            self._database.meta.set(LAST_TEST_KEY, result | {"verdict": str(error)})
            raise
        total = sum(rows.values())
        self._database.meta.set(LAST_TEST_KEY, result | {"verdict": _GOOD, "rows": total})
        structlog.get_logger().info(f"{backup} was restored on trial and is good: {total:,} rows")
