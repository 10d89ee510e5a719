"""Commits what waits in the buffer: everything in one transaction, or nothing."""

import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import structlog

from collector.database.buffer import Batch, Buffer
from collector.database.database import Database
from collector.database.lock_holders import LockWatch
from collector.errors import DatabaseBusy, DatabaseError
from collector.table import Row

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
    """

    def __init__(
        self,
        database: Database,
        buffer: Buffer,
        closing_rows: Callable[[], tuple[str, Iterable[Row]]] | None = None,
    ) -> None:
        self._database = database
        self._buffer = buffer
        self._closing_rows = closing_rows
        self._told_dropped = 0
        self._lock_watch = LockWatch(database.path)
        self._lock = threading.Lock()

    def flush(self, *, even_nothing: bool = False) -> int:
        """Commit all that waits; how many rows there were.

        Args:
            even_nothing: write the closing rows also where nothing waits, to know that writing is possible.

        Raises:
            DatabaseBusy: another program holds a lock; the rows wait on.
            DatabaseError: disk full, read-only, damaged; the rows wait on.
        """
        with self._lock:  # a position must not be committed after a later one
            try:
                rows = self._flush(even_nothing=even_nothing)
            except DatabaseBusy:
                self._lock_watch.locked()
                raise
            self._lock_watch.free()
            return rows

    def _flush(self, *, even_nothing: bool) -> int:
        batches = self._buffer.take()
        if not batches and not even_nothing:
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
        try:
            with self._database.transaction() as connection:
                before = _rows_ever(connection)
                yield connection
                after = _rows_ever(connection)
        except DatabaseBusy:
            raise
        except DatabaseError:
            (now,) = self._database.query(_ROWS_EVER)
            if after == before or now["rows"] != after:
                raise

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
