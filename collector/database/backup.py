"""Backups: what they are called, how one comes into being, and the proof that it is one."""

import fcntl
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from collector.database.connection import (
    connect_for_copy,
    connect_for_writing,
    connect_read_only,
    explained,
    fetch,
    refuse_damage,
)
from collector.database.documented import DOCUMENTED_TABLES
from collector.database.repository import Record
from collector.database.schema import migrate, refresh_views
from collector.errors import BackupFailed, DatabaseBusy, DatabaseError
from collector.table import Table, View
from collector.units import BYTES_PER_MB

SPARE_BYTES = 16 * 2**20
"""Left free on the disk beside a backup, for what is collected meanwhile."""

_PARTIAL = ".partial"
_TIME_FORMAT = "%Y%m%d-%H%M%S"

_LOWEST_PRIORITY = 19

Query = Callable[[str], list[Record]]
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Contents:
    """What a database holds.

    Args:
        schema: the SQL of all tables, indexes, views and triggers.
        rows: of each table.
    """

    schema: frozenset[str]
    rows: dict[str, int]


class BackupDirectory:
    """Where the backups of one database lie.

    Args:
        directory: made where it is missing.
        database: path of the database.
    """

    def __init__(self, directory: Path, database: Path) -> None:
        self.directory = directory
        self._database = database
        pattern = rf"{re.escape(database.stem)}-\d{{8}}-\d{{6}}{re.escape(database.suffix)}"
        self._pattern = re.compile(pattern)

    def backups(self) -> list[Path]:
        """The finished backups, the oldest first."""
        with suppress(FileNotFoundError):
            return sorted(path for path in self.directory.iterdir() if self._pattern.fullmatch(path.name))
        return []

    def taken_at(self, backup: Path) -> datetime:
        """Local time at which a backup was begun, from its name."""
        return datetime.strptime(backup.stem[-15:], _TIME_FORMAT)  # noqa: DTZ007 - names are in local time

    @contextmanager
    def new_backup(self, now: datetime) -> Iterator[tuple[Path, Path]]:
        """Gives a path to be filled, and that of the backup that it becomes where the block ends well.

        Args:
            now: local time, for its name.

        Raises:
            BackupFailed: the directory cannot be written, or is full.
            DatabaseBusy: another backup is under way.
        """
        with self._reserved():
            self._require_space()
            path = self._free_path(now)
            partial = path.with_name(f".{path.name}{_PARTIAL}")
            try:
                yield partial, path
                take_mode(partial, self._database)
                synchronise(partial)
                forget_pages(partial)
                partial.rename(path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
            synchronise(self.directory)

    @contextmanager
    def trial(self, backup: Path) -> Iterator[Path]:
        """Gives the path of a file beside a backup that is removed at the end.

        Raises:
            BackupFailed: the directory cannot be written, or is full.
            DatabaseBusy: a backup is under way.
        """
        with self._reserved():
            self._require_space()
            try:
                yield backup.with_name(f".{backup.name}.trial{_PARTIAL}")
            finally:
                self._remove_partial()

    def remove_old(self, keep: int, new: Path) -> None:
        """Remove all but the newest; the new one stays, also where a wrong clock gave others later names."""
        others = [path for path in self.backups() if path != new]
        for path in others[: max(0, len(others) + 1 - keep)]:
            path.unlink(missing_ok=True)

    @contextmanager
    def _reserved(self) -> Iterator[None]:
        """No other backup is under way meanwhile; what a killed one left is removed."""
        try:
            self._make_directory()
            descriptor = os.open(self.directory, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise BackupFailed(
                f"{self.directory} cannot be used: {error.strerror}. Mend it, or [backup] directory"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._remove_partial()
            yield
        except BlockingIOError as error:
            raise DatabaseBusy("another backup is under way: wait until it has ended") from error
        except OSError as error:
            raise BackupFailed(f"{error.filename or self.directory}: {error.strerror}") from error
        finally:
            os.close(descriptor)

    def _make_directory(self) -> None:
        """Root makes it for the owner of the database, whose collector is to write it."""
        if not self.directory.exists():
            self.directory.mkdir(parents=True)
            _take_owner(self.directory, self._database.parent)

    def _remove_partial(self) -> None:
        for left in self.directory.iterdir():
            if left.name.startswith(f".{self._database.stem}-") and _PARTIAL in left.name:
                left.unlink(missing_ok=True)

    def _require_space(self) -> None:
        needed = self._database.stat().st_size + SPARE_BYTES
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            raise BackupFailed(
                f"{self.directory} has {free / BYTES_PER_MB:,.0f} MB free and a backup needs "
                f"{needed / BYTES_PER_MB:,.0f} MB: free some space, lower [backup] keep, or name another "
                "[backup] directory"
            )

    def _free_path(self, now: datetime) -> Path:
        while True:  # the hour that autumn's clock shows twice gives some names twice
            name = f"{self._database.stem}-{now.strftime(_TIME_FORMAT)}{self._database.suffix}"
            if not (path := self.directory / name).exists():
                return path
            now += timedelta(seconds=1)


def contents(query: Query, count: Callable[[str], int] | None = None) -> Contents:
    """What the database behind this query holds.

    Args:
        query: asks it.
        count: how many rows a table has, given its name; all are counted at once if it is left out.
    """
    count = count or (lambda name: int(query(f"SELECT count(*) AS n FROM {quoted(name)}")[0]["n"]))  # noqa: S608
    schema = query("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    not_counted = ("sqlite_", "CREATE VIRTUAL")  # the rows of a virtual table stand in others, or nowhere
    tables = [
        row["name"]
        for row in schema
        if row["type"] == "table"
        and not (row["name"].startswith(not_counted) or row["sql"].startswith(not_counted))
    ]
    return Contents(frozenset(row["sql"] for row in schema), {name: count(name) for name in tables})


def contents_of(path: Path) -> Contents:
    """What a database file holds that nobody writes.

    Raises:
        DatabaseError: it cannot be read.
    """
    with closing(connect_read_only(path)) as connection, explained(path):
        return contents(lambda statement: fetch(connection, statement))


def verify(copy: Path, before: Contents, query: Query, is_stopping: Callable[[], bool]) -> Contents:
    """Prove that a copy is sound and whole; what it holds.

    Args:
        copy: the file.
        before: what the database held before it was copied.
        query: asks that database again, where the copy has less: rows may have been deleted meanwhile.
        is_stopping: ends the proof early.

    Raises:
        BackupFailed: it is not whole.
        DatabaseDamaged: it is not sound, and so neither is the database.
    """
    with closing(connect_read_only(copy)) as connection, explained(copy):
        connection.set_progress_handler(is_stopping, 100_000)
        refuse_damage(connection, copy)
        copied = contents(lambda statement: fetch(connection, statement))
    missing = before.schema - copied.schema
    if missing:
        raise BackupFailed(f"the copy lacks {', '.join(sorted(missing)):.200}")
    for table, rows in before.rows.items():
        if copied.rows[table] < rows and copied.rows[table] < _count(query, table):
            raise BackupFailed(f"the copy has {copied.rows[table]} rows of {table}, and there were {rows}")
    return copied


def prepare(
    backup: Path,
    target: Path,
    tables: Iterable[Table],
    views: Iterable[View],
    between_steps: Callable[[int, int], None] = lambda _done, _total: None,
) -> Contents:
    """Make a file of a backup that can take the place of the database; what it holds.

    Args:
        backup: a database of any version of the documentation.
        target: the new file; what a killed attempt left there is overwritten.
        tables: wanted beside the documented ones.
        views: wanted over all these tables.
        between_steps: told how many pages are done, of how many.

    Raises:
        BackupFailed: it is the database of another program.
        DatabaseError: it cannot be read, or is damaged.
    """
    for left in (target, target.with_name(f"{target.name}-journal")):
        left.unlink(missing_ok=True)
    with closing(connect_read_only(backup)) as source, explained(backup):
        refuse_damage(source, backup)
        present = contents(lambda statement: fetch(source, statement))
        if not present.rows.keys() & {table.name for table in DOCUMENTED_TABLES}:
            raise BackupFailed(f"{backup} is no backup: it has none of the collector's tables")
        with closing(connect_for_copy(target)) as copy:
            source.backup(
                copy, pages=1000, progress=lambda _status, left, total: between_steps(total - left, total)
            )
    with closing(connect_for_writing(target)) as connection, explained(target):
        list(migrate(connection, (*DOCUMENTED_TABLES, *tables)))
        list(refresh_views(connection, views))
    synchronise(target)
    return contents_of(target)


def set_aside(path: Path) -> Path:
    """Give a damaged database, and the journal that belongs to it, another name; that name."""
    kept = path.with_name(f"{path.name}.damaged-{datetime.now().strftime(_TIME_FORMAT)}")  # noqa: DTZ005
    move_side_files(path, kept)
    path.rename(kept)
    synchronise(path.parent)
    return kept


def move_side_files(database: Path, kept: Path) -> None:
    """Rename what SQLite has left beside a database, so that it follows the database's new name."""
    for suffix in ("-journal", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            database.with_name(database.name + suffix).rename(kept.with_name(kept.name + suffix))


def at_lowest_priority(action: Callable[[], Result]) -> Result:
    """Do what computes for long, so that inference has the processors first.

    In a thread of its own: who has lowered his priority may not raise it again.
    """
    with ThreadPoolExecutor(1, initializer=_step_back) as pool:
        return pool.submit(action).result()


def _step_back() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)


def synchronise(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def forget_pages(path: Path) -> None:
    """Give the memory that caches a file back: models and the database are read sooner than it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def quoted(name: str) -> str:
    """A table's name as it stands in SQL."""
    return '"' + name.replace('"', '""') + '"'


def _count(query: Query, table: str) -> int:
    try:
        return int(query(f"SELECT count(*) AS n FROM {quoted(table)}")[0]["n"])  # noqa: S608
    except DatabaseError:
        return 0  # it was dropped meanwhile


def take_mode(path: Path, like: Path) -> None:
    """Give a file the mode of another one, and its owner where that is allowed."""
    _take_owner(path, like)
    path.chmod(like.stat().st_mode & 0o777)


def _take_owner(path: Path, like: Path) -> None:
    status = like.stat()
    with suppress(PermissionError):  # it is ours, or the same already
        os.chown(path, status.st_uid, status.st_gid)
