"""One tick: the sources are read, one after another, and what came in time makes the row of `metrics`."""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any

from collector.database.buffer import Buffer, Retention
from collector.database.documented import METRICS
from collector.health import Health, State, observe
from collector.schema import SqlValue
from collector.sources.base import Reading, Source, Tick

SNAPSHOT_TIMEOUT_SECONDS = 0.5
"""How long the row of `metrics` waits for its sources. A slower one still writes its own rows."""

TURN_SECONDS = 0.05
"""How long one thread reads source after source before another goes on with those that are left."""

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
        self._turns = [_Turn(source, buffer, stuck_after) for source in sources]
        self._hands: list[_Hand] = []
        self._unknown: dict[str, SqlValue] = {}
        self.newest: dict[str, SqlValue] = {}
        for source in sources:
            self._unknown |= source.defaults
        self.health = tuple(turn.health for turn in self._turns)

    def tick(self) -> None:
        """Read every source that is free, wait a little, and add the row of `metrics`."""
        tick = Tick(int(time.time()))
        left = deque(turn for turn in self._turns if turn.begin(tick))
        while left:
            # While they are quick, one thread reads them all: each thread that wakes costs about as much
            # as a reading, and threads that run at once fight for the interpreter at each system call.
            self._free_hand().take(partial(_take_turns, left, tick))
            tick.wait(TURN_SECONDS)
        tick.wait(SNAPSHOT_TIMEOUT_SECONDS - (time.monotonic() - tick.started))
        self.newest = self._snapshot(tick)
        self._buffer.add([METRICS.insert(METRICS.row(self.newest))], Retention.DROPPABLE)

    def close(self) -> None:
        """Close the sources and end the threads; one that hangs is left behind, it ends with the process.

        There is no tick at that time, and none after it.
        """
        for turn in self._turns:
            self._free_hand().take(turn.close)
        for hand in self._hands:
            hand.end()

    def _free_hand(self) -> "_Hand":
        """A hand that holds nothing: the first one, as long as every source is quick."""
        free = next((hand for hand in self._hands if hand.is_free), None)
        if free is None:
            self._hands.append(free := _Hand())
        return free

    def _snapshot(self, tick: Tick) -> dict[str, SqlValue]:
        values: dict[str, SqlValue] = {"timestamp": tick.timestamp, **self._unknown}
        for future in tick.readings.values():
            reading = future.result() if future.done() else None
            if reading is not None:
                values |= reading.snapshot
        return values


class _Turn:
    """One source and what is known of how it fares."""

    def __init__(self, source: Source[Any], buffer: Buffer, stuck_after: float) -> None:
        self._source = source
        self._buffer = buffer
        self._stuck_after = stuck_after
        self.health = Health(source.name)
        self._tick: Tick | None = None

    def begin(self, tick: Tick) -> bool:
        """Whether the source is to be read; not where the last reading is still under way."""
        last = self._tick
        if last is None or last.readings[self._source.name].done():
            self._tick = tick
            tick.readings[self._source.name] = Future()
            return True
        if time.monotonic() - last.started > self._stuck_after:
            self.health.set_state(
                State("stuck", "it does not come back from reading", "warning", success=False)
            )
        return False

    def take(self, tick: Tick) -> None:
        """Read the source, for a tick that it has begun."""
        reading = observe(self.health, partial(self._source.read, tick), _state_of)
        if reading is not None:
            self._buffer.add([table.insert(row) for table, row in reading.rows], Retention.DROPPABLE)
            self._buffer.add(reading.changes, Retention.KEPT)
        tick.readings[self._source.name].set_result(reading)

    def close(self) -> None:
        """Close the source, once its reading has ended."""
        if self._tick:
            self._tick.readings[self._source.name].result()
        self._source.close()


def _next_turn(left: "deque[_Turn]") -> "_Turn | None":
    with suppress(IndexError):  # another hand may have taken the last one
        return left.popleft()
    return None


def _take_turns(left: "deque[_Turn]", tick: Tick) -> None:
    while turn := _next_turn(left):
        turn.take(tick)


class _Hand:
    """A thread that does one thing after another; it does not keep the process alive."""

    def __init__(self) -> None:
        self.is_free = True
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="sources", daemon=True).start()

    def take(self, work: Callable[[], None]) -> None:
        """Do it at once: only for a free hand."""
        self.is_free = False
        self._work.put(work)

    def end(self) -> None:
        """End the thread when its work is done."""
        self._work.put(None)

    def _run(self) -> None:
        while work := self._work.get():
            work()
            self.is_free = True


def _state_of(reading: Reading[Any]) -> State:
    return reading.state
