"""Rows that wait in memory for the next flush, within bounds."""

import re
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from collector.schema import Row, Write

SAMPLE_CAPACITY_ROWS = 10_000
"""About 10 MB; at the default settings about three hours of a locked database."""

LINE_CAPACITY_ROWS = 20_000
"""Log lines that may wait; log readers stop reading until there is room."""

LINE_CAPACITY_BYTES = 4 * 2**20
"""Bytes of log that may wait: a limit on rows alone would not limit the memory of long lines."""


class Retention(Enum):
    """What may happen to rows that cannot be committed for a long time."""

    DROPPABLE = "the oldest are dropped when the buffer is full: samples"
    KEPT = "never dropped: changes of state, events of the collector"
    REREADABLE = (
        "never dropped, and not moved to another database: a log is read again from its position there"
    )


@dataclass(slots=True)
class Batch:
    """Rows of one statement, committed together with all rows that were added before them.

    Args:
        statement: SQL that writes them.
        rows: in the order of execution.
        retention: what may happen to them.
        size_bytes: size of the log lines that they were made from.
    """

    statement: str
    rows: list[Row]
    retention: Retention
    size_bytes: int = 0


class Buffer:
    """Batches in the order of their arrival; every method may be called from any thread.

    Args:
        sample_capacity: droppable rows that may wait; beyond it the oldest are dropped and counted.
        line_capacity: other rows that may wait; beyond it `room_for_lines` is 0.

    Attributes:
        dropped_samples: rows dropped so far.
    """

    def __init__(
        self, sample_capacity: int = SAMPLE_CAPACITY_ROWS, line_capacity: int = LINE_CAPACITY_ROWS
    ) -> None:
        self._sample_capacity = sample_capacity
        self._line_capacity = line_capacity
        self._lock = threading.Lock()
        self._batches: deque[Batch] = deque()
        self._sample_rows = 0
        self._line_rows = 0
        self._line_bytes = 0
        self.dropped_samples = 0

    def add(self, writes: Iterable[Write], retention: Retention, size_bytes: int = 0) -> None:
        """Add rows of one or several tables that must be committed together.

        For example log lines and the position after them: both are committed, or neither.
        Check `room_for_lines` before reading more lines.

        Args:
            writes: rows and the statements that write them.
            retention: what may happen to these rows while they wait.
            size_bytes: size of the log lines that the rows were made from.
        """
        with self._lock:
            for write in writes:
                self._batches.append(Batch(write.statement, list(write.rows), retention, size_bytes))
                self._count(self._batches[-1])
                size_bytes = 0  # counted once
            self._drop_oldest_samples()

    @property
    def room_for_lines(self) -> int:
        """Number of log rows that may be added now."""
        if self._line_bytes >= LINE_CAPACITY_BYTES:
            return 0
        return max(0, self._line_capacity - self._line_rows)

    @property
    def waiting(self) -> int:
        """Number of rows that wait."""
        return self._sample_rows + self._line_rows

    def drain(self) -> list[Batch]:
        """Remove and return all batches."""
        with self._lock:
            batches = list(self._batches)
            self._batches.clear()
            self._sample_rows = self._line_rows = self._line_bytes = 0
            return batches

    def drain_transferable(self) -> list[Batch]:
        """Remove all batches and return those that are to be written into another database.

        Log lines are not among them: the logs are read again from the positions that the other database
        contains.
        """
        return [batch for batch in self.drain() if batch.retention is not Retention.REREADABLE]

    def put_back(self, batches: list[Batch]) -> None:
        """Return batches whose commit failed; they precede the batches that have been added since."""
        with self._lock:
            self._batches.extendleft(reversed(batches))
            for batch in batches:
                self._count(batch)
            self._drop_oldest_samples()

    def _count(self, batch: Batch) -> None:
        """Add a batch to the numbers of waiting rows and bytes."""
        if batch.retention is Retention.DROPPABLE:
            self._sample_rows += len(batch.rows)
        else:
            self._line_rows += len(batch.rows)
        self._line_bytes += batch.size_bytes

    def _drop_oldest_samples(self) -> None:
        excess = self._sample_rows - self._sample_capacity
        if excess <= 0:
            return
        self._sample_rows -= excess
        self.dropped_samples += excess
        for batch in self._batches:
            if batch.retention is Retention.DROPPABLE:
                dropped = batch.rows[:excess]
                del batch.rows[:excess]
                excess -= len(dropped)
        self._batches = deque(batch for batch in self._batches if batch.rows)


_WRITTEN_TABLE = re.compile(
    r"\s*(?:(?:INSERT|REPLACE)(?:\s+OR\s+\w+)?\s+INTO|UPDATE(?:\s+OR\s+\w+)?|DELETE\s+FROM)\s+\"?(\w+)",
    re.IGNORECASE,
)


def leave_out_tables(batches: Iterable[Batch], tables: Iterable[str]) -> list[Batch]:
    """Return the batches whose statement (INSERT, REPLACE, UPDATE or DELETE) writes none of these tables."""
    left_out = set(tables)
    return [batch for batch in batches if written_table(batch.statement) not in left_out]


def written_table(statement: str) -> str:
    """Return the table that a statement (INSERT, REPLACE, UPDATE or DELETE) writes; empty for another one."""
    match = _WRITTEN_TABLE.match(statement)
    return match[1] if match else ""


def clear_references(batches: Iterable[Batch], references: Mapping[str, Sequence[int]]) -> list[Batch]:
    """Return copies of the batches in which references to rows of their database are NULL.

    Args:
        batches: rows that are to be written into another database.
        references: for each statement the positions of the values that refer to other rows; batches of
            other statements are returned unchanged.
    """

    def cleared(row: Row, positions: Sequence[int]) -> Row:
        return tuple(None if number in positions else value for number, value in enumerate(row))

    return [
        Batch(
            batch.statement,
            [cleared(row, references.get(batch.statement, ())) for row in batch.rows],
            batch.retention,
            batch.size_bytes,
        )
        for batch in batches
    ]
