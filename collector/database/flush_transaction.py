"""The transactions of flushes, which detect two situations that SQLite does not report.

**The file was overwritten in place** (`cp backup.db llama-dashboard.db`). Device and inode stay the same, so
`FileWatch` detects nothing, and SQLite assumes that another program has changed its database: the flush
would continue in the backup, and later in whatever else is copied there, with caches of another file. So each
flush ends with reading a fingerprint, the result of a SELECT that changes with every flush of a collector and
that no other program changes; each flush begins with reading it again. A difference means another content.

**A commit failed after it was durable.** The last step of a commit deletes the journal and synchronises the
directory. When the journal is gone, the rows are in the file for good; a disk that fails in exactly the
synchronisation makes SQLite report an I/O error all the same. Writing the rows again would store them twice.
So the number of rows ever inserted is read at the end of the transaction. If the commit fails and that
number is what the file contains now, the rows are in the file, and the error is ignored.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from collector.database.database import Database
from collector.errors import DatabaseBusy, DatabaseError, DatabaseReplaced

_INSERTED_ROWS = "SELECT coalesce(sum(seq), 0) AS inserted FROM sqlite_sequence"
"""Grows with every row that is inserted into a table with an automatic id."""


class FlushTransactions:
    """The transactions in which one writer commits its flushes.

    Args:
        database: the database.
        fingerprint_query: a SELECT whose result changes with every flush, and is changed by nothing else;
            empty for no detection of overwritten files.
    """

    def __init__(self, database: Database, fingerprint_query: str) -> None:
        self._database = database
        self._fingerprint_query = fingerprint_query
        self._fingerprint: object = None  # of the last flush; None before the first one

    @contextmanager
    def begin(self) -> Iterator[sqlite3.Connection]:
        """Run the block in one transaction, and commit it.

        Raises:
            DatabaseReplaced: the file was overwritten; nothing was written.
            DatabaseError: nothing was written.
        """
        rows_before = rows_after = 0
        fingerprint = self._fingerprint
        try:
            with self._database.transaction() as connection:
                self._check_fingerprint(connection)
                rows_before = _inserted_rows(connection)
                yield connection
                rows_after = _inserted_rows(connection)
                fingerprint = self._read_fingerprint(connection)
        except (DatabaseBusy, DatabaseReplaced):
            raise  # in both cases SQLite has reliably written nothing
        except DatabaseError:
            (now,) = self._database.query(_INSERTED_ROWS)
            is_durable = rows_after != rows_before and now["inserted"] == rows_after
            if not is_durable:
                raise
        self._fingerprint = fingerprint

    def _check_fingerprint(self, connection: sqlite3.Connection) -> None:
        if self._fingerprint is not None and self._read_fingerprint(connection) != self._fingerprint:
            raise DatabaseReplaced(
                f"{self._database.path} was overwritten with another database. Samples wait in memory, and "
                "are written into what is found at that path in a few seconds"
            )

    def _read_fingerprint(self, connection: sqlite3.Connection) -> object:
        """Return the result of the fingerprint query; None if there is no such table, or no query."""
        if not self._fingerprint_query:
            return None
        try:
            return connection.execute(self._fingerprint_query).fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
                raise
            return None  # the table is missing: it is another database


def _inserted_rows(connection: sqlite3.Connection) -> int:
    return int(connection.execute(_INSERTED_ROWS).fetchone()[0])
