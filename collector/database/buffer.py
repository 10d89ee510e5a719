"""Rows that wait in memory for the next commit, within bounds."""

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from collector.schema import Row, Write

SAMPLE_CAPACITY_ROWS = 10_000
"""About 10 MB; at the default settings some three hours of a locked database."""

LINE_CAPACITY_ROWS = 20_000
"""Log lines that may wait; readers of logs stop reading until there is room."""

LINE_CAPACITY_BYTES = 4 * 2**20
"""Bytes of log that may wait: a bound on rows alone would not limit the memory of long lines."""


class Retention(Enum):
    """What may happen to rows that cannot be committed for a long time."""

    DROPPABLE = "the oldest are dropped when the buffer is full: samples"
    KEPT = "never dropped: changes of state, events of the collector"
    REREADABLE = (
        "never dropped, and not moved to another database: a log is read again from its position there"
    )


@dataclass(slots=True)
class Batch:
    """Rows of one statement, committed together with all that was added before them.

    Args:
        statement: SQL that writes them.
        rows: in the order of execution.
        retention: what may happen to them.
        size_bytes: size of the log lines that they were made of.
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

    def add(self, writes: Iterable[Write], retention: Retention, size_bytes: int = 0) -> None:
        """Add the rows of several tables for one and the same commit.

        Log lines come together with the position that they end at, so that both are committed or neither.
        Ask `room_for_lines` before reading more lines.

        Args:
            writes: rows and the statements that write them.
            retention: what may happen to these rows while they wait.
            size_bytes: size of the log lines that the rows were made of.
        """
        with self._lock:
            for write in writes:
                self._batches.append(Batch(write.statement, list(write.rows), retention, size_bytes))
                self._count(self._batches[-1])
                size_bytes = 0  # counted once
            self._drop_oldest_samples()

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

    def drain(self) -> list[Batch]:
        """Remove and return everything that waits."""
        with self._lock:
            batches = list(self._batches)
            self._batches.clear()
            self._samples = self._lines = self._line_bytes = 0
            return batches

    def drain_transferable(self) -> list[Batch]:
        """Remove everything that waits, and return what is to be written into another database.

        Log lines are not: they are read again from the position that the other database holds.
        """
        return [batch for batch in self.drain() if batch.retention is not Retention.REREADABLE]

    def put_back(self, batches: list[Batch]) -> None:
        """Return batches whose commit failed; they come before what has arrived since."""
        with self._lock:
            self._batches.extendleft(reversed(batches))
            for batch in batches:
                self._count(batch)
            self._drop_oldest_samples()

    def _count(self, batch: Batch) -> None:
        if batch.retention is Retention.DROPPABLE:
            self._samples += len(batch.rows)
        else:
            self._lines += len(batch.rows)
        self._line_bytes += batch.size_bytes

    def _drop_oldest_samples(self) -> None:
        excess = self._samples - self._sample_capacity
        if excess <= 0:
            return
        self._samples -= excess
        self.dropped_samples += excess
        for batch in self._batches:
            if batch.retention is Retention.DROPPABLE:
                dropped = batch.rows[:excess]
                del batch.rows[:excess]
                excess -= len(dropped)
        self._batches = deque(batch for batch in self._batches if batch.rows)
