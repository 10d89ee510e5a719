"""Rows that wait in memory for the next commit, within a bound."""

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from collector.table import Row, Table

SAMPLE_CAPACITY_ROWS = 10_000
"""About 10 MB; at the default settings some three hours of a locked database."""

LINE_CAPACITY_ROWS = 20_000
"""Log lines that may wait; readers of logs stop reading until there is room."""

LINE_CAPACITY_BYTES = 4 * 2**20
"""Bytes of log that may wait: as many long lines take as much memory as short ones."""


@dataclass(slots=True)
class Batch:
    """Rows of one statement that are committed together with all that was added before them.

    Args:
        statement: what writes them.
        rows: in their order.
        droppable: the oldest may go where there is no room.
        size_bytes: of the log that they were made of.
        is_read_again: of a log, which is read from the position that the database holds.
    """

    statement: str
    rows: list[Row]
    droppable: bool
    size_bytes: int = 0
    is_read_again: bool = False


class Buffer:
    """Batches in the order of their arrival; every method may be called from any thread.

    Args:
        sample_capacity: sample rows that may wait; beyond it the oldest are dropped and counted.
        line_capacity: log rows that may wait; beyond it `room_for_lines` is 0.
    """

    def __init__(
        self, sample_capacity: int = SAMPLE_CAPACITY_ROWS, line_capacity: int = LINE_CAPACITY_ROWS
    ) -> None:
        self._sample_capacity = sample_capacity
        self._line_capacity = line_capacity
        self._lock = threading.Lock()
        self._batches: deque[Batch] = deque()
        self._samples = 0
        self._lines = 0
        self._line_bytes = 0
        self.dropped_samples = 0

    def add_samples(self, rows: Iterable[tuple[Table, Row]]) -> None:
        """Add sample rows; where there is no room, the oldest waiting ones go."""
        by_table: dict[str, list[Row]] = {}
        for table, row in rows:
            by_table.setdefault(table.insert_statement, []).append(row)
        with self._lock:
            for statement, together in by_table.items():
                self._batches.append(Batch(statement, together, droppable=True))
                self._samples += len(together)
            self._drop_oldest_samples()

    def add_lines(
        self, table: Table, rows: list[Row], position: tuple[Table, Row] | None = None, size_bytes: int = 0
    ) -> None:
        """Add log rows, and the position up to which they were read, for one and the same commit.

        They are never dropped: ask `room_for_lines` before reading more.

        Args:
            table: where the rows go.
            rows: complete, in the order of the table's written columns.
            position: the table of positions and its row.
            size_bytes: of the log that the rows were made of.
        """
        with self._lock:
            lines = Batch(table.insert_statement, rows, droppable=False, size_bytes=size_bytes)
            self._batches.append(lines)
            self._lines += len(rows)
            self._line_bytes += size_bytes
            if position:
                lines.is_read_again = True
                statement = position[0].replace_statement
                self._batches.append(Batch(statement, [position[1]], droppable=False, is_read_again=True))
                self._lines += 1

    def add_lasting(self, statement: str, row: Row) -> None:
        """Add one write that is never dropped."""
        with self._lock:
            self._batches.append(Batch(statement, [row], droppable=False))
            self._lines += 1

    @property
    def room_for_lines(self) -> int:
        """How many log rows may be added now."""
        if self._line_bytes >= LINE_CAPACITY_BYTES:
            return 0
        return max(0, self._line_capacity - self._lines)

    @property
    def waiting(self) -> int:
        """How many rows wait."""
        return self._samples + self._lines

    def take(self) -> list[Batch]:
        """Remove and return everything that waits."""
        with self._lock:
            batches = list(self._batches)
            self._batches.clear()
            self._samples = self._lines = self._line_bytes = 0
            return batches

    def hand_over(self) -> list[Batch]:
        """Remove and return what is to go into another database: logs are read anew from its positions."""
        return [batch for batch in self.take() if not batch.is_read_again]

    def put_back(self, batches: list[Batch]) -> None:
        """Return batches whose commit failed; they stand before what has arrived since."""
        with self._lock:
            self._batches.extendleft(reversed(batches))
            self._samples = sum(len(b.rows) for b in self._batches if b.droppable)
            self._lines = sum(len(b.rows) for b in self._batches if not b.droppable)
            self._line_bytes = sum(b.size_bytes for b in self._batches)
            self._drop_oldest_samples()

    def _drop_oldest_samples(self) -> None:
        excess = self._samples - self._sample_capacity
        if excess <= 0:
            return
        self._samples -= excess
        self.dropped_samples += excess
        for batch in self._batches:
            if batch.droppable:
                dropped = batch.rows[:excess]
                del batch.rows[:excess]
                excess -= len(dropped)
        self._batches = deque(batch for batch in self._batches if batch.rows)
