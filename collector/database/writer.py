"""Flushes: everything that waits in the buffer is committed in one transaction, or nothing is."""

import threading
from collections.abc import Callable
from contextlib import suppress

import structlog

from collector.database.buffer import Batch, Buffer
from collector.database.database import Database
from collector.database.file_watch import Replacement
from collector.database.flush_transaction import FlushTransactions
from collector.database.locks.watch import LockWatch
from collector.database.partial_commit import VALUE_ERRORS, PartialCommit, RefusedBatches
from collector.errors import DatabaseBusy, DatabaseDamaged, DatabaseError, DatabaseReplaced, StatementFailed
from collector.schema import Row, Write


class Writer:
    """Moves rows from the buffer into the database.

    Args:
        database: the database.
        buffer: the buffer.
        final_rows: returns rows to be written last in every flush that has something to write.
        fingerprint_query: see `FlushTransactions`.

    Attributes:
        replacement: what is at the path of the database, if that was replaced or is damaged; otherwise None.
            `file_watch.py` describes the steps that follow.
        journal_problem: what to do about a journal mode that another program has set; None if all is well.
    """

    def __init__(
        self,
        database: Database,
        buffer: Buffer,
        final_rows: Callable[[], Write] | None = None,
        fingerprint_query: str = "",
    ) -> None:
        self._database = database
        self._buffer = buffer
        self._final_rows = final_rows
        self._transactions = FlushTransactions(database, fingerprint_query)
        self._unconfirmed: list[Batch] = []
        self.replacement: Replacement | None = None
        self.journal_problem: str | None = None
        self._logged_dropped = 0
        self._lock_watch = LockWatch(database.path)
        self._lock = threading.Lock()

    def flush(self, *, force: bool = False) -> int:
        """Commit everything that waits.

        Args:
            force: write the final rows even if nothing waits, to find out whether writing is possible.

        Returns:
            the number of rows, without the final ones.

        Raises:
            DatabaseBusy: another program holds a lock; the rows stay in the buffer.
            DatabaseReplaced: it is no longer the file that was opened; the rows stay in the buffer.
            DatabaseError: disk full, read-only, damaged; the rows stay in the buffer.
        """
        with self._lock:  # one flush at a time: a log position must not be committed after a later one
            try:
                rows = self._flush(force=force)
            except (DatabaseReplaced, DatabaseDamaged) as error:
                self.replacement = self.replacement or Replacement(self._database.path, error)
                self.replacement.error = error
                raise
            except DatabaseError as error:
                self.replacement = None
                if isinstance(error, DatabaseBusy):
                    self._lock_watch.record_busy()
                raise
            self.replacement = None
            self._lock_watch.record_free()
            return rows

    def hand_over(self) -> list[Batch]:
        """Remove and return the rows that are to be written into another database."""
        with self._lock:
            self._buffer.put_back(self._unconfirmed)
            self._unconfirmed = []
            self._log_dropped()
            return self._buffer.drain_transferable()

    def _flush(self, *, force: bool) -> int:
        """Commit everything that waits; after an error the rows are in the buffer again."""
        batches = self._buffer.drain()
        if not batches and not force:
            return 0
        final = self._final_rows() if self._final_rows else None
        try:
            refused = self._commit(batches, final)
        except BaseException:
            self._buffer.put_back(batches)
            raise
        if refused:
            self._buffer.put_back(refused.batches)
            waiting = {id(batch) for batch in refused.batches}  # equal batches are not the same one
            batches = [batch for batch in batches if id(batch) not in waiting]
        # The file may have been moved between the start of the transaction and its commit. The rows are then
        # in a file that is elsewhere or deleted. They stay in `_unconfirmed`, from which `hand_over` writes
        # them into another database too. If the file comes back, it already contains them: the next flush
        # that succeeds clears the list.
        self._unconfirmed += batches
        self._database.check_same_file()
        self._unconfirmed = []
        self._log_dropped()
        self.journal_problem = self._database.restore_journal_mode()
        if refused:
            raise refused.error
        return sum(len(batch.rows) for batch in batches)

    def _commit(self, batches: list[Batch], final: Write | None) -> RefusedBatches | None:
        """Commit batches; return those that could not be written although the others could."""
        statements: dict[str, list[Row]] = {}  # rows of one statement together: one `executemany` each
        for batch in batches:
            statements.setdefault(batch.statement, []).extend(batch.rows)
        if final:
            statements[final.statement] = list(final.rows)
        with suppress(StatementFailed, *VALUE_ERRORS):
            with self._transactions.begin() as connection:
                for statement, rows in statements.items():
                    connection.executemany(statement, rows)
            return None
        return PartialCommit(self._database, self._transactions).run(batches, final)

    def _log_dropped(self) -> None:
        """Log how many samples the buffer has dropped since the last report."""
        dropped = self._buffer.dropped_samples - self._logged_dropped
        if dropped:
            self._logged_dropped += dropped
            structlog.get_logger().error(
                "the database could not be written for so long that the oldest samples were dropped",
                rows=dropped,
            )
