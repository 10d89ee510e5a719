"""Make a backup, in the process that writes the database or while another process writes it."""

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from itertools import count
from pathlib import Path

from collector.backups.background import raise_if_stopped, run_at_lowest_priority
from collector.backups.directory import BackupDirectory
from collector.backups.files import sync_to_disk
from collector.backups.identity import ensure_identity
from collector.backups.verification import count_in_one_query, read_contents, verify
from collector.database import Database
from collector.database.connection import (
    connect_for_copy,
    connect_for_writing,
    connect_read_only,
    fetch,
    transaction,
    translate_sqlite_errors,
)
from collector.database.deletion import count_rows, has_time_index
from collector.database.documented import METADATA
from collector.database.locks.waiting import run_when_unlocked
from collector.database.repositories.base import Record
from collector.errors import CopyRestarted, DatabaseError

LAST_BACKUP_KEY = "lastBackup"
"""Key in `metadata`: the fields of the `BackupSummary` of the last complete backup."""

AWAITED_SINCE_KEY = "backupsAwaitedSince"
"""Key in `metadata`: Unix seconds since which the nightly job waits for a backup. Each backup deletes it."""

PAUSE_FACTOR = 3
"""The copy pauses this many times as long as its last step took, so that it uses a quarter of the disk."""

STEPS_PER_SYNC = 8
"""Steps of the copy between two fsyncs: a single fsync at the end would delay all commits meanwhile."""

LOCK_SECONDS = 30.0
"""How long a backup waits for the lock of another program; it would have to be done again from the start."""

_MIN_PAUSE_SECONDS = 0.002
_RECORD_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class BackupSummary:
    """Facts about one complete backup.

    Args:
        time: Unix seconds at which it was started.
        file: its path.
        bytes: its size.
        rows: number of rows in all its tables.
        seconds: how long it took.
    """

    time: float
    file: str
    bytes: int
    rows: int
    seconds: float


def back_up(
    database: Database,
    directory: BackupDirectory,
    keep: int,
    stop: threading.Event,
    clock: Callable[[], float] = time.time,
) -> BackupSummary:
    """Back up a database that this process writes, while it goes on writing.

    The database is copied in short steps with a pause after each, so that commits continue in between. Only
    after the copy was verified it gets the name of a backup, and old backups are deleted.

    Args:
        database: source of the copy; `metadata` records the finished backup.
        directory: where the backup is created.
        keep: number of backups to keep, this one included.
        stop: ends it early.
        clock: returns Unix seconds.

    Raises:
        Stopped: it was ended early; no file of it remains.
        BackupFailed: there is not enough space, or the copy is incomplete; the older backups remain.
        DatabaseBusy: another backup is under way, or another program holds a lock.
        DatabaseError: the copy cannot be written, or the database cannot be read or is damaged.
    """
    begun_at, started = clock(), time.monotonic()

    def query(statement: str) -> list[Record]:
        return run_when_unlocked(partial(database.query, statement), LOCK_SECONDS, stop)

    def record(summary: BackupSummary) -> None:
        with database.transaction() as connection:
            database.meta.set(LAST_BACKUP_KEY, asdict(summary))
            connection.execute("DELETE FROM metadata WHERE key = ?", (AWAITED_SINCE_KEY,))

    run_when_unlocked(partial(ensure_identity, database), LOCK_SECONDS, stop)
    with directory.new_backup(datetime.fromtimestamp(begun_at)) as (copy, path):  # noqa: DTZ006 - names are in local time
        before = read_contents(query, partial(_count_rows, database, stop))
        _copy(database, copy, stop)
        copied = run_at_lowest_priority(lambda: verify(copy, before, query, stop.is_set))
        raise_if_stopped(stop)
    directory.remove_old(keep, path)
    rows = sum(copied.rows.values())
    summary = BackupSummary(begun_at, str(path), path.stat().st_size, rows, time.monotonic() - started)
    run_when_unlocked(partial(record, summary), LOCK_SECONDS, stop)
    return summary


def _copy(database: Database, copy: Path, stop: threading.Event) -> None:
    """Copy a database in steps; at once if another program writes so often that the steps do not end."""
    try:
        database.copy_to(copy, partial(_pause, copy, count(1), stop))
    except CopyRestarted:
        copy.unlink()
        with closing(connect_read_only(database.path)) as source:
            source.set_progress_handler(stop.is_set, 100_000)
            _copy_at_once(source, copy, database.path)


def _copy_at_once(source: sqlite3.Connection, copy: Path, path: Path) -> None:
    """Copy a database in one read transaction, during which nobody can commit: a few seconds per GB."""
    connect_for_copy(copy).close()  # creates the file with mode 0600, which VACUUM INTO then fills
    with translate_sqlite_errors(path):
        source.execute("VACUUM INTO ?", (str(copy),))


def back_up_beside_collector(database: Path, directory: BackupDirectory, keep: int) -> BackupSummary:
    """Back up a database that a running collector writes, in one read transaction.

    Copying in steps is impossible here: SQLite starts the copy again after each commit of another connection.
    Until the copy is done, the collector's rows wait in its memory, for a few seconds per GB.

    Args:
        database: its path.
        directory: where the backup is created.
        keep: number of backups to keep, this one included.

    Raises:
        BackupFailed: there is not enough space, or the copy is incomplete; the older backups remain.
        DatabaseBusy: another backup is under way.
        DatabaseError: the copy cannot be written, or the database cannot be read or is damaged.
    """
    begun_at, started = time.time(), time.monotonic()
    with (
        directory.new_backup(datetime.fromtimestamp(begun_at)) as (copy, path),  # noqa: DTZ006 - names are in local time
        closing(connect_read_only(database)) as source,
    ):
        with translate_sqlite_errors(database):
            before = read_contents(lambda statement: fetch(source, statement))
        _copy_at_once(source, copy, database)
        copied = verify(copy, before, lambda statement: fetch(source, statement), lambda: False)
    directory.remove_old(keep, path)
    rows = sum(copied.rows.values())
    summary = BackupSummary(begun_at, str(path), path.stat().st_size, rows, time.monotonic() - started)
    with suppress(DatabaseError):  # this user may be allowed to read the database only
        _record(database, summary)
    return summary


def _record(database: Path, summary: BackupSummary) -> None:
    """Record a backup in a database that a running collector writes, waiting for it if it is writing now.

    Raises:
        DatabaseError: it is locked for too long, or this user may not write it.
    """
    row = (LAST_BACKUP_KEY, json.dumps(asdict(summary)), int(time.time()))
    with closing(connect_for_writing(database)) as connection:

        def write() -> None:
            with transaction(connection):
                connection.execute(METADATA.replace_statement, row)

        run_when_unlocked(write, _RECORD_SECONDS)


def _count_rows(database: Database, stop: threading.Event, table: str) -> int:
    """Return the number of rows of a table, counted in steps between which others can use the connection.

    A table of another program, without an index on the time, is counted in one step.
    """

    def step(count_some: Callable[[], int]) -> int:
        counted = run_when_unlocked(count_some, LOCK_SECONDS, stop)
        stop.wait(_MIN_PAUSE_SECONDS)
        raise_if_stopped(stop)
        return counted

    if run_when_unlocked(partial(has_time_index, database, table), LOCK_SECONDS, stop):
        return run_when_unlocked(partial(count_rows, database, table, step), LOCK_SECONDS, stop)
    return step(partial(count_in_one_query, database.query, table))


def _pause(copy: Path, steps: Iterator[int], stop: threading.Event, step_seconds: float) -> None:
    """Pause after a step of the copy, first writing the copy to the disk after every few steps."""
    if next(steps) % STEPS_PER_SYNC == 0:
        sync_to_disk(copy)
    stop.wait(max(PAUSE_FACTOR * step_seconds, _MIN_PAUSE_SECONDS))
    raise_if_stopped(stop)
