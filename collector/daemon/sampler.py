"""One tick: all sources are read, and the readings that arrive in time make the row of `metrics`.

How the work is shared between threads, for sources A (2 ms), B (3 s, a GPU driver that hangs) and C (2 ms):

- While all are quick, one worker reads A, B and C one after another. Each thread that wakes up costs about as
  much as a reading, and threads that run at the same time compete for the interpreter at each system call.
- If B hangs, the first worker is still busy with it after `ROTATION_SECONDS`. A second worker then reads the
  sources that remain, here C.
- After `SNAPSHOT_TIMEOUT_SECONDS` the row of `metrics` is added, without B's values.
- At the next ticks B's slot is skipped, because its reading has not ended; after `STUCK_SECONDS` its state is
  `stuck`. Worker two (the first one is still in B) reads A and C.
- When B returns, its rows are added with the timestamp of the tick that they belong to, and the first worker
  is idle again. From the next tick on it reads all three.

So there are as many threads as sources that hung at the same time, plus one.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from collector.database.buffer import Buffer, Retention
from collector.database.documented import METRICS
from collector.health import Health, State, observe
from collector.schema import SqlValue
from collector.sources.base import Source, Tick

SNAPSHOT_TIMEOUT_SECONDS = 0.5
"""How long the row of `metrics` waits for its sources. A slower source still writes its own rows."""

ROTATION_SECONDS = 0.05
"""How long one worker reads source after source before another one continues with the remaining ones."""

STUCK_SECONDS = 10
"""A reading that takes longer than this, and than three intervals, is reported as stuck."""


class Sampler:
    """Reads all sources at each tick.

    Args:
        sources: each after those whose readings it uses.
        buffer: receives the rows.
        interval: seconds between two ticks.

    Attributes:
        newest: the last snapshot, by column of `metrics`.
        health: health of each source.
    """

    def __init__(self, sources: Sequence[Source[Any]], buffer: Buffer, interval: float) -> None:
        self._buffer = buffer
        stuck_after = max(STUCK_SECONDS, 3 * interval)
        self._slots = [SourceSlot(source, buffer, stuck_after) for source in sources]
        self._workers: list[Worker] = []
        self._defaults: dict[str, SqlValue] = {}
        self.newest: dict[str, SqlValue] = {}
        for source in sources:
            self._defaults |= source.defaults
        self.health = tuple(slot.health for slot in self._slots)

    def tick(self) -> None:
        """Read each source that is not being read, wait for the readings, and add the row of `metrics`."""
        tick = Tick(int(time.time()))
        remaining = deque(slot for slot in self._slots if slot.begin(tick))
        while remaining:
            self._idle_worker().start(partial(_read_remaining, remaining, tick))
            tick.wait(ROTATION_SECONDS)
        tick.wait(SNAPSHOT_TIMEOUT_SECONDS - (time.monotonic() - tick.started))
        values: dict[str, SqlValue] = {"timestamp": tick.timestamp, **self._defaults}
        for future in tick.readings.values():
            reading = future.result() if future.done() else None
            if reading is not None:
                values |= reading.snapshot
        self.newest = values
        self._buffer.add([METRICS.insert(METRICS.row(values))], Retention.DROPPABLE)

    def close(self) -> None:
        """Close the sources and end the threads; to be called after the last tick.

        A source that hangs is closed when its reading ends, or never: its thread ends with the process.
        """
        for slot in self._slots:
            self._idle_worker().start(slot.close)
        for worker in self._workers:
            worker.end()

    def _idle_worker(self) -> "Worker":
        """Return an idle worker, creating one if needed: the first one as long as all sources are quick."""
        idle = next((worker for worker in self._workers if worker.is_idle), None)
        if idle is None:
            self._workers.append(idle := Worker())
        return idle


class SourceSlot:
    """One source, its state, and its reading in progress.

    Args:
        source: the source.
        buffer: receives its rows.
        stuck_after: seconds after which a reading is reported as stuck.
    """

    def __init__(self, source: Source[Any], buffer: Buffer, stuck_after: float) -> None:
        self._source = source
        self._buffer = buffer
        self._stuck_after = stuck_after
        self.health = Health(source.name)
        self._tick: Tick | None = None  # of the last reading

    def begin(self, tick: Tick) -> bool:
        """Prepare a reading in this tick and return true; false if the last one is still in progress."""
        last = self._tick
        if last is None or last.readings[self._source.name].done():
            self._tick = tick
            tick.readings[self._source.name] = Future()
            return True
        if time.monotonic() - last.started > self._stuck_after:
            self.health.set_state(State("stuck", "reading it does not return", "warning", success=False))
        return False

    def read(self, tick: Tick) -> None:
        """Read the source and add its rows to the buffer; `begin` must have returned true for this tick."""
        reading = observe(self.health, partial(self._source.read, tick), lambda reading: reading.state)
        if reading is not None:
            # In this order: a flush between the two must not write rows of a run without the run.
            self._buffer.add(reading.changes, Retention.KEPT)
            self._buffer.add([table.insert(row) for table, row in reading.rows], Retention.DROPPABLE)
        tick.readings[self._source.name].set_result(reading)

    def close(self) -> None:
        """Close the source when its reading has ended."""
        if self._tick:
            self._tick.readings[self._source.name].result()
        self._source.close()


def _read_remaining(remaining: deque[SourceSlot], tick: Tick) -> None:
    """Read source after source until none remains; several workers may share the same deque."""
    while remaining:
        try:
            slot = remaining.popleft()
        except IndexError:  # another worker has removed the last one since
            return
        slot.read(tick)


class Worker:
    """A thread that does one piece of work after another; it does not keep the process alive."""

    def __init__(self) -> None:
        self.is_idle = True
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="sources", daemon=True).start()

    def start(self, work: Callable[[], None]) -> None:
        """Start a piece of work; only for an idle worker."""
        self.is_idle = False
        self._work.put(work)

    def end(self) -> None:
        """End the thread when its work is done."""
        self._work.put(None)

    def _run(self) -> None:
        while work := self._work.get():
            work()
            self.is_idle = True
