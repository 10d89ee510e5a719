"""One tick: every source is read in its own thread, and what came in time makes the row of `metrics`."""

import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from collector.database.buffer import Buffer
from collector.database.documented import METRICS
from collector.health import Health, State, observe
from collector.sources.base import Reading, Source, Tick
from collector.table import SqlValue

SNAPSHOT_PATIENCE_SECONDS = 0.5
"""How long the row of `metrics` waits for its sources. A slower one still writes its own rows."""

TURN_SECONDS = 0.05
"""How long a source has the interpreter to itself before the next one starts beside it."""

STUCK_SECONDS = 10
"""A reading that takes longer than this, and than three intervals, is told as stuck."""


class Sampler:
    """Reads all sources at every tick.

    Args:
        sources: each after those whose readings it uses.
        buffer: where the rows go.
        interval: seconds between two ticks.
    """

    def __init__(self, sources: Sequence[Source[Any]], buffer: Buffer, interval: float) -> None:
        self._buffer = buffer
        stuck_after = max(STUCK_SECONDS, 3 * interval)
        self._workers = [_Worker(source, buffer, stuck_after) for source in sources]
        self._unknown: dict[str, SqlValue] = {}
        self.newest: dict[str, SqlValue] = {}
        for source in sources:
            self._unknown |= source.unknown
        self.health = tuple(worker.health for worker in self._workers)

    def tick(self) -> None:
        """Read every source that is free, wait a little, and add the row of `metrics`."""
        tick = Tick(int(time.time()))
        for worker in self._workers:
            # One after another while they are quick: threads that run at once fight for the interpreter
            # at each system call, which costs more processor time than all the readings.
            worker.start(tick)
            tick.wait(TURN_SECONDS)
        tick.wait(SNAPSHOT_PATIENCE_SECONDS - (time.monotonic() - tick.started))
        self.newest = self._snapshot(tick)
        self._buffer.add_samples([(METRICS, METRICS.row(self.newest))])

    def close(self) -> None:
        """End the threads; one that hangs is left behind, it ends with the process."""
        for worker in self._workers:
            worker.close()

    def _snapshot(self, tick: Tick) -> dict[str, SqlValue]:
        values: dict[str, SqlValue] = {"timestamp": tick.timestamp, **self._unknown}
        for future in tick.readings.values():
            reading = future.result() if future.done() else None
            if reading is not None:
                values |= reading.snapshot
        return values


class _Worker:
    """The thread of one source."""

    def __init__(self, source: Source[Any], buffer: Buffer, stuck_after: float) -> None:
        self._source = source
        self._buffer = buffer
        self._stuck_after = stuck_after
        self.health = Health(source.name)
        self._busy_since: float | None = None
        self._ticks: queue.SimpleQueue[Tick | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"source {source.name}", daemon=True)
        self._thread.start()

    def start(self, tick: Tick) -> None:
        """Begin a reading, unless the last one is still under way."""
        if self._busy_since is None:
            self._busy_since = time.monotonic()
            tick.readings[self._source.name] = Future()
            self._ticks.put(tick)
        elif time.monotonic() - self._busy_since > self._stuck_after:
            self.health.report(State("stuck", "it does not come back from reading", "warning", success=False))

    def close(self) -> None:
        self._ticks.put(None)

    def _work(self) -> None:
        while (tick := self._ticks.get()) is not None:
            reading = observe(self.health, partial(self._source.read, tick), _state_of)
            if reading is not None:
                self._buffer.add_samples(reading.rows)
                for statement in reading.lasting:
                    self._buffer.add_lasting(statement.sql, statement.values)
            self._busy_since = None
            tick.readings[self._source.name].set_result(reading)
        self._source.close()


def _state_of(reading: Reading[Any]) -> State:
    return reading.state
