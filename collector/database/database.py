"""The one writing connection, its transactions, and the five repositories that use it."""

import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from collector.database.connection import (
    connect_for_copy,
    connect_for_writing,
    fetch,
    transaction,
    translate_sqlite_errors,
)
from collector.database.documented import DOCUMENTED_TABLES
from collector.database.file_watch import FileWatch
from collector.database.locks.collector_lock import CollectorLock
from collector.database.migrations import migrate, refresh_views
from collector.database.repositories.base import Record
from collector.database.repositories.logs import LogsRepository
from collector.database.repositories.metadata import MetadataRepository
from collector.database.repositories.metrics import MetricsRepository
from collector.database.repositories.models import ModelsRepository
from collector.database.repositories.server_config import ConfigRepository
from collector.errors import CopyRestarted, Stopped
from collector.schema import Table, View

COPY_STEP_PAGES = 256
"""Pages that are copied while the connection is locked: 1 MB, one or two milliseconds."""


_INTERRUPT_SECONDS = 0.05

MAX_RESTARTS = 3
"""How often a copy may begin again because another program has written."""


class Database:
    """The database file, open for writing by this process.

    Any thread may call any method: a lock lets one thread at a time use the connection. A transaction inside
    another one of the same thread is part of the outer one.

    Args:
        path: path of the file; it and its directory are created if they are missing.
        tables: tables to create or migrate beside the documented ones.
        views: views to create or update.

    Attributes:
        changes: one sentence for each change that opening made to tables and views.

    Raises:
        DatabaseInUse: another collector writes it.
        DatabaseError: it is not a database, damaged, read-only, or was created for another purpose.
    """

    def __init__(self, path: Path, tables: Iterable[Table] = (), views: Iterable[View] = ()) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._depth = 0
        self._is_closed = False
        self._collector_lock = CollectorLock(path)
        self._collector_lock.acquire()
        with ExitStack() as on_error:
            on_error.callback(self._collector_lock.release)
            self._connection = connect_for_writing(path)
            on_error.callback(self._connection.close)
            with translate_sqlite_errors(path):
                self.changes = [
                    *migrate(self._connection, (*DOCUMENTED_TABLES, *tables)),
                    *refresh_views(self._connection, views),
                ]
            self._file = FileWatch(path)
            on_error.pop_all()
        self.models = ModelsRepository(self)
        self.metrics = MetricsRepository(self)
        self.logs = LogsRepository(self)
        self.config = ConfigRepository(self)
        self.meta = MetadataRepository(self)

    def query(self, statement: str, parameters: Sequence[object] = ()) -> list[Record]:
        """Return all rows of a SELECT, as dictionaries.

        Raises:
            DatabaseBusy: another program holds a lock.
            DatabaseError: the file cannot be read.
            Stopped: the database was closed, or `interrupt` ended the statement.
        """
        with self._lock, translate_sqlite_errors(None):
            self._check_open()
            return fetch(self._connection, statement, parameters)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run the block in one write transaction: all of it is committed, or nothing.

        Raises:
            DatabaseBusy: another program holds a lock; nothing was written.
            DatabaseReplaced: it is no longer the file that was opened; nothing was written.
            DatabaseError: disk full, read-only, damaged; nothing was written.
            Stopped: the database was closed, or `interrupt` ended a statement; nothing was written.
        """
        with self._lock:
            self._check_open()
            if self._depth:
                yield self._connection
                return
            self._file.check_same_file()
            with transaction(self._connection):
                self._depth += 1
                try:
                    yield self._connection
                finally:
                    self._depth -= 1

    def check_same_file(self) -> None:
        """Check that the file at the path is the one that was opened.

        Raises:
            DatabaseReplaced: there is another file, or none.
        """
        self._file.check_same_file()

    def restore_journal_mode(self) -> str | None:
        """Switch back to the rollback journal if another program has switched the file to WAL.

        Returns:
            what to do, where that is impossible now because another program has the file open; else None.
        """
        with self._lock, translate_sqlite_errors(None):
            self._check_open()
            (mode,) = self._connection.execute("PRAGMA journal_mode").fetchone()
            if mode == "delete":
                return None
            with suppress(sqlite3.OperationalError):  # locked
                (mode,) = self._connection.execute("PRAGMA journal_mode = DELETE").fetchone()
            if mode == "delete":
                return None
        return (
            f"another program has switched the database to the journal mode {mode}, in which users without "
            "write permission cannot read it. It is switched back as soon as no other program has it open: "
            "close that program, and remove `PRAGMA journal_mode` from it"
        )

    def run_script(self, script: str) -> None:
        """Run statements that cannot be part of a transaction.

        Raises:
            DatabaseBusy: another program holds a lock.
            DatabaseError: disk full, read-only, damaged.
            Stopped: the database was closed, or `interrupt` ended a statement.
        """
        with self._lock, translate_sqlite_errors(self.path):
            self._check_open()
            self._connection.executescript(script)

    def copy_to(self, path: Path, between_steps: Callable[[float], None]) -> None:
        """Copy the database into a new file, in steps; other threads may write between two steps.

        This works only with the writing connection itself: SQLite adds to the copy what this connection
        writes in the meantime. With any other connection the copy would start again after each commit,
        and never end.

        Args:
            path: path of the copy; the file must not exist.
            between_steps: called with the duration of the last step in seconds; an exception ends the copy.

        Raises:
            CopyRestarted: another program writes so often that the copy would begin again and again.
            DatabaseError: the copy cannot be created or written, or the database cannot be read.
        """
        with closing(connect_for_copy(path)) as target, self._lock, translate_sqlite_errors(self.path):
            started = time.perf_counter()
            restarts, last_remaining = 0, sys.maxsize

            def release_lock(_status: int, remaining: int, _total: int) -> None:
                nonlocal started, restarts, last_remaining
                if remaining >= last_remaining:  # it began again, after a commit of another program
                    restarts += 1
                    if restarts > MAX_RESTARTS:
                        raise CopyRestarted(
                            f"the copy of the database began again {restarts} times, because another program "
                            "writes into it"
                        )
                last_remaining = remaining
                seconds = time.perf_counter() - started
                self._lock.release()
                try:
                    between_steps(seconds)
                finally:
                    self._lock.acquire()
                    started = time.perf_counter()
                self._check_open()

            self._connection.backup(target, pages=COPY_STEP_PAGES, progress=release_lock, sleep=0)

    def interrupt(self) -> None:
        """End the statement that another thread is running, if any; it raises `Stopped` there."""
        self._connection.interrupt()

    def close(self) -> None:
        """Close the file and release its lock. A statement in progress is interrupted.

        Another thread that uses the database later gets `Stopped`.
        """
        # A count of all rows can hold the lock for seconds. An interrupt ends only statements that run at
        # this moment, and the thread may be between two of them: hence the loop.
        while not self._lock.acquire(timeout=_INTERRUPT_SECONDS):
            self.interrupt()
        try:
            self._is_closed = True
            self._connection.close()
            self._collector_lock.release()
        finally:
            self._lock.release()

    def _check_open(self) -> None:
        if self._is_closed:
            raise Stopped("the database was closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
