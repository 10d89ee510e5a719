"""The nightly backup: whether one is due."""

import threading
import time
from collections.abc import Callable

from collector.backups.background import CLOCK_TOLERANCE_SECONDS, DueJob
from collector.backups.creation import AWAITED_SINCE_KEY, LAST_BACKUP_KEY, back_up
from collector.backups.directory import BackupDirectory
from collector.database import Database
from collector.parsers.cron import is_due
from collector.settings import BackupSettings


class NightlyBackup(DueJob):
    """Backs up the database at the times of a schedule; a time that was missed is made up for.

    Args:
        database: source of the copies.
        directory: where the backups are created.
        settings: the schedule, and how many backups are kept.
        stop: ends it early.
        clock: returns Unix seconds.
    """

    def __init__(
        self,
        database: Database,
        directory: BackupDirectory,
        settings: BackupSettings,
        stop: threading.Event,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(stop)
        self._database = database
        self._directory = directory
        self._settings = settings
        self._clock = clock

    def _run_if_due(self) -> None:
        now = self._clock()
        if is_due(self._settings.schedule, self._awaited_since(now), now):
            back_up(self._database, self._directory, self._settings.keep, self._stop, self._clock)

    def _awaited_since(self, now: float) -> float:
        """Return the Unix seconds since which the schedule's next time is awaited.

        Mostly that is the time of the last backup: made on Monday at 02:00, the next one is due on Tuesday at
        02:00, or whenever the collector runs after that. There is no such time in two cases, and `metadata`
        then records since when a backup is awaited:

        - A new database. Its first backup is due at the next 02:00, not at once.
        - The last backup was made by a clock that was wrong, for example in the year 2036. The clock is right
          again, and the next backup is due at the next 02:00.
        """
        last = self._database.meta.get(LAST_BACKUP_KEY)
        if isinstance(last, dict) and "file" not in last:
            # Version 0.1.0 stored {"time": …} under the key of the last backup: move it to its own key.
            with self._database.transaction() as connection:
                self._database.meta.set(AWAITED_SINCE_KEY, last.get("time"))
                connection.execute("DELETE FROM metadata WHERE key = ?", (LAST_BACKUP_KEY,))
        awaited = self._database.meta.get(AWAITED_SINCE_KEY)
        if awaited is None and isinstance(last, dict):
            awaited = last.get("time")
        if isinstance(awaited, int | float) and awaited <= now + CLOCK_TOLERANCE_SECONDS:
            return awaited
        self._database.meta.set(AWAITED_SINCE_KEY, now)
        return now
