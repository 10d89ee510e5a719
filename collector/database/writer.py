"""Commits what waits in the buffer: everything in one transaction, or nothing."""

import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import structlog

from collector.database.buffer import Batch, Buffer
from collector.database.database import Database
from collector.database.file_watch import Replacement
from collector.database.lock_holders import LockWatch
from collector.errors import DatabaseBusy, DatabaseDamaged, DatabaseError, DatabaseReplaced
from collector.schema import Row

_UNFIT = (
    sqlite3.IntegrityError,
    sqlite3.ProgrammingError,
    sqlite3.InterfaceError,
    OverflowError,
    UnicodeError,
)
"""What SQLite's binding raises for a value, as opposed to the file."""


class Writer:
    """Moves rows from the buffer into the database.

    Args:
        database: where they go.
        buffer: where they wait.
        closing_rows: gives (statement, rows) to be written last in every commit that has something to write.
        mark: a SELECT whose result is another one after every commit, and which nobody else changes: it tells
            a file that was written over, in its place, from the one that was written last.

    Attributes:
        lost: what lies where the database was, while it is not the one that was opened or is damaged.
    """

    def __init__(
        self,
        database: Database,
        buffer: Buffer,
        closing_rows: Callable[[], tuple[str, Iterable[Row]]] | None = None,
        mark: str = "",
    ) -> None:
        self._database = database
        self._buffer = buffer
        self._closing_rows = closing_rows
        self._mark = mark
        self._marked: object = None
        self._astray: list[Batch] = []  # committed into a file that was no longer at its path afterwards
        self.lost: Replacement | None = None
        self._told_dropped = 0
        self._lock_watch = LockWatch(database.path)
        self._lock = threading.Lock()

    def flush(self, *, force: bool = False) -> int:
        """Commit all that waits; how many rows there were.

        Args:
            force: write the closing rows also where nothing waits, to know that writing is possible.

        Raises:
            DatabaseBusy: another program holds a lock; the rows wait on.
            DatabaseReplaced: it is no longer the file that was opened; the rows wait on.
            DatabaseError: disk full, read-only, damaged; the rows wait on.
        """
        with self._lock:  # a position must not be committed after a later one
            try:
                rows = self._flush(force=force)
            except (DatabaseReplaced, DatabaseDamaged) as error:
                self.lost = self.lost or Replacement(self._database.path, error)
                self.lost.error = error
                raise
            except DatabaseError as error:
                self.lost = None
                if isinstance(error, DatabaseBusy):
                    self._lock_watch.locked()
                raise
            self.lost = None
            self._lock_watch.free()
            return rows

    def hand_over(self) -> list[Batch]:
        """Remove and return what waits for another database."""
        with self._lock:
            self._buffer.put_back(self._astray)
            self._astray = []
            self._tell_dropped()
            return self._buffer.drain_transferable()

    def _flush(self, *, force: bool) -> int:
        batches = self._buffer.drain()
        if not batches and not force:
            return 0
        statements = _by_statement(batches)
        if self._closing_rows:
            statement, rows = self._closing_rows()
            statements[statement] = list(rows)
        try:
            self._commit(statements)
        except BaseException:
            self._buffer.put_back(batches)
            raise
        self._astray += batches
        self._database.check_same_file()
        self._astray = []
        self._tell_dropped()
        return sum(len(batch.rows) for batch in batches)

    def _commit(self, statements: dict[str, list[Row]]) -> None:
        try:
            with self._once() as connection:
                for statement, rows in statements.items():
                    connection.executemany(statement, rows)
        except _UNFIT:
            self._commit_singly(statements)

    @contextmanager
    def _once(self) -> Iterator[sqlite3.Connection]:
        """A transaction that does not fail where it is committed.

        The last step of a commit synchronises the directory, when the journal is gone and the rows are in
        the file for good. A disk that fails just then makes SQLite report an error, and written again the
        rows would be there twice.

        Raises:
            DatabaseError: nothing was written.
        """
        before = after = 0
        marked = self._marked
        try:
            with self._database.transaction() as connection:
                self._refuse_other_contents(connection)
                before = _rows_ever(connection)
                yield connection
                after = _rows_ever(connection)
                marked = self._read_mark(connection)
        except (DatabaseBusy, DatabaseReplaced):
            raise
        except DatabaseError:
            (now,) = self._database.query(_ROWS_EVER)
            if after == before or now["rows"] != after:
                raise
        self._marked = marked

    def _refuse_other_contents(self, connection: sqlite3.Connection) -> None:
        """What is copied over a file keeps its inode, and SQLite takes it for the work of another program."""
        if self._marked is not None and self._read_mark(connection) != self._marked:
            raise DatabaseReplaced(
                f"{self._database.path} was written over with another database. What is sampled waits in "
                "memory, and goes into what is found at that path in a few seconds"
            )

    def _read_mark(self, connection: sqlite3.Connection) -> object:
        try:
            return connection.execute(self._mark).fetchone() if self._mark else None
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
                raise
            return None  # there is no such table

    def _commit_singly(self, statements: dict[str, list[Row]]) -> None:
        """One row that does not fit must not hold up the others: it is left out, and said."""
        refused: list[str] = []
        with self._once() as connection:
            for statement, rows in statements.items():
                for row in rows:
                    try:
                        connection.execute(statement, row)
                    except _UNFIT as error:
                        refused.append(f"{statement.split('(')[0]}: {error}: {row!r:.300}")
        structlog.get_logger().error("rows do not fit their table and were left out", rows=refused[:5])

    def _tell_dropped(self) -> None:
        dropped = self._buffer.dropped_samples - self._told_dropped
        if dropped:
            self._told_dropped += dropped
            structlog.get_logger().error(
                "the database could not be written for so long that the oldest samples were dropped",
                rows=dropped,
            )


_ROWS_EVER = "SELECT coalesce(sum(seq), 0) AS rows FROM sqlite_sequence"
"""Grows with every row that is inserted into any of the time series."""


def _rows_ever(connection: sqlite3.Connection) -> int:
    return int(connection.execute(_ROWS_EVER).fetchone()[0])


def _by_statement(batches: list[Batch]) -> dict[str, list[Row]]:
    """Rows of one statement together, in their order: one `executemany` each."""
    statements: dict[str, list[Row]] = {}
    for batch in batches:
        statements.setdefault(batch.statement, []).extend(batch.rows)
    return statements
