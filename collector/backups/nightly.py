"""The nightly backup, and the proof from time to time that one can be restored."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from itertools import count
from pathlib import Path

import structlog

from collector.backups.directory import BackupDirectory
from collector.backups.files import sync_to_disk
from collector.backups.priority import run_at_lowest_priority
from collector.backups.verification import Contents, read_contents, verify
from collector.database import Database
from collector.database.deletion import count_rows, has_time_index
from collector.errors import BackupFailed, CollectorError, DatabaseBusy, Stopped
from collector.parsers.cron import is_due
from collector.schema import BYTES_PER_MB, quote_identifier
from collector.settings import BackupSettings

LAST_BACKUP_KEY = "lastBackup"
"""In `metadata`: the fields of its `BackupSummary`; until there is one, since when one is awaited."""

LAST_TEST_KEY = "lastBackupTest"
"""In `metadata`: `time`, `file` and `verdict` of the last test of a backup."""

LOOK_SECONDS = 60
"""How often is looked whether something is due."""

RETRY_SECONDS = 3600
"""How long after a failure it is tried again."""

REST = 3
"""The copy rests this many times as long as its last step took, so that it uses a quarter of the disk."""

_SET_BACK_SECONDS = 43_200
"""A last time so far in the future is that of a clock that was wrong; a nearer one was the same night."""

_SHORTEST_REST_SECONDS = 0.002

STEPS_A_SYNCHRONISATION = 8
"""The copy goes to the disk bit by bit: all of it at the end would keep every commit waiting."""


@dataclass(frozen=True, slots=True)
class BackupSummary:
    """One backup.

    Args:
        time: Unix seconds at which it was begun.
        file: its path.
        bytes: its size.
        rows: in all its tables.
        seconds: how long it took.
    """

    time: float
    file: str
    bytes: int
    rows: int
    seconds: float


def back_up(
    database: Database,
    place: BackupDirectory,
    keep: int,
    stop: threading.Event,
    clock: Callable[[], float] = time.time,
) -> BackupSummary:
    """Back up a database that this process writes, while it goes on writing.

    Args:
        database: the one to be copied.
        place: where the copy goes.
        keep: how many backups are kept, this one included.
        stop: ends it early.
        clock: gives Unix seconds.

    Raises:
        Stopped: it was ended early; nothing of it is left.
        BackupFailed: there is no room for it, or it is not whole; the older ones stay.
        DatabaseBusy: another backup is under way, or another program holds a lock.
        DatabaseError: it cannot be written, or the database cannot be read or is damaged.
    """
    begun, started = clock(), time.monotonic()
    with place.new_backup(datetime.fromtimestamp(begun)) as (copy, path):  # noqa: DTZ006 - names are in local time
        before = read_contents(database.query, partial(_count, database, stop))
        database.copy_to(copy, partial(_rest, copy, count(1), stop))
        copied = run_at_lowest_priority(lambda: verify(copy, before, database.query, stop.is_set))
        _unless_stopped(stop)
    place.remove_old(keep, path)
    rows = sum(copied.rows.values())
    summary = BackupSummary(begun, str(path), path.stat().st_size, rows, time.monotonic() - started)
    database.meta.set(LAST_BACKUP_KEY, asdict(summary))
    return summary


def _count(database: Database, stop: threading.Event, table: str) -> int:
    """How many rows a table has; others have the connection between two of the steps."""

    def step(action: Callable[[], int]) -> int:
        counted = action()
        stop.wait(_SHORTEST_REST_SECONDS)
        _unless_stopped(stop)
        return counted

    if has_time_index(database, table):
        return count_rows(database, table, step)
    return int(database.query(f"SELECT count(*) AS n FROM {quote_identifier(table)}")[0]["n"])  # noqa: S608


def _rest(copy: Path, steps: Iterator[int], stop: threading.Event, step_seconds: float) -> None:
    if next(steps) % STEPS_A_SYNCHRONISATION == 0:
        sync_to_disk(copy)
    stop.wait(max(REST * step_seconds, _SHORTEST_REST_SECONDS))
    _unless_stopped(stop)


def _unless_stopped(stop: threading.Event) -> None:
    if stop.is_set():
        raise Stopped("the collector ends")


class _Daily:
    """Something that is done when it is due; after a failure again, but not at once."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._failure: CollectorError | None = None
        self._retry_at = 0.0

    def run(self) -> None:
        """Do it if it is due.

        Raises:
            DatabaseBusy: it has to wait for another program; the next look tries again.
            CollectorError: it failed, now or at the last attempt, and is to be tried again later.
        """
        if self._failure and time.monotonic() < self._retry_at:
            raise self._failure.with_traceback(None)  # else it would grow with every raise
        self._failure = None
        try:
            self._run()
        except DatabaseBusy:
            raise
        except CollectorError as error:
            if self._stop.is_set():
                return  # that is why
            self._failure, self._retry_at = error, time.monotonic() + RETRY_SECONDS
            raise

    def _run(self) -> None:
        raise NotImplementedError


class NightlyBackup(_Daily):
    """Backs up when the schedule says so; a night that was missed is made up for.

    Args:
        database: the one to be copied.
        place: where the copies go.
        settings: when, and how many are kept.
        stop: ends it early.
        clock: gives Unix seconds.
    """

    def __init__(
        self,
        database: Database,
        place: BackupDirectory,
        settings: BackupSettings,
        stop: threading.Event,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(stop)
        self._database = database
        self._place = place
        self._settings = settings
        self._clock = clock

    def _run(self) -> None:
        now = self._clock()
        if is_due(self._settings.schedule, self._last(now), now):
            back_up(self._database, self._place, self._settings.keep, self._stop, self._clock)

    def _last(self, now: float) -> float:
        """Unix seconds of the last backup, or of the first look."""
        stored = self._database.meta.get(LAST_BACKUP_KEY)
        last = stored.get("time") if isinstance(stored, dict) else None
        if isinstance(last, int | float) and last <= now + _SET_BACK_SECONDS:
            return last
        self._database.meta.set(LAST_BACKUP_KEY, {"time": now})  # of a clock that was wrong, or none yet
        return now


class BackupTest(_Daily):
    """Restores the newest backup to a temporary place, and asks it; a bad one again, until one is good.

    Args:
        database: where the outcome is noted.
        place: where the backups lie.
        days: between two tests.
        restore: makes a database of the backup that it is given, at the path that it is given.
        stop: ends it early.
        clock: gives Unix seconds.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - each is another thing
        self,
        database: Database,
        place: BackupDirectory,
        days: int,
        restore: Callable[[Path, Path], Contents],
        stop: threading.Event,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(stop)
        self._database = database
        self._place = place
        self._seconds = days * 86_400
        self._restore = restore
        self._clock = clock

    def _run(self) -> None:
        if not (backups := self._place.backups()):
            return
        now = self._clock()
        stored = self._database.meta.get(LAST_TEST_KEY)
        last = stored if isinstance(stored, dict) else {}
        if last.get("verdict") != "ok" or not -_SET_BACK_SECONDS <= now - last["time"] < self._seconds:
            self._note(backups[-1], now)

    def _note(self, backup: Path, now: float) -> None:
        outcome = {"time": now, "file": str(backup)}
        try:
            rows = self._test(backup)
        except DatabaseBusy:
            raise
        except CollectorError as error:
            _unless_stopped(self._stop)
            self._database.meta.set(LAST_TEST_KEY, outcome | {"verdict": str(error)})
            raise
        self._database.meta.set(LAST_TEST_KEY, outcome | {"verdict": "ok", "rows": rows})
        structlog.get_logger().info(f"{backup} was restored on trial and is good: {rows:,} rows")

    def _test(self, backup: Path) -> int:
        with self._place.trial(backup) as trial:
            rows = run_at_lowest_priority(lambda: self._restore(backup, trial).rows)
        _unless_stopped(self._stop)
        if not rows.get("metrics"):
            raise BackupFailed(f"{backup} can be restored, and there is no sample in it")
        return sum(rows.values())


def described(summary: BackupSummary) -> str:
    """One line about a backup."""
    return (
        f"{summary.file}: {summary.bytes / BYTES_PER_MB:,.1f} MB, {summary.rows:,} rows, "
        f"{summary.seconds:.1f} s"
    )
