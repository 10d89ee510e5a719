"""The interface of a source: something that is read once per tick and returns rows."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from collector.health import OK, State
from collector.schema import Row, SqlValue, Table, Write

Detail_co = TypeVar("Detail_co", covariant=True)

Query = Callable[[str, Sequence[object]], list[dict[str, Any]]]
"""Returns the rows of a SELECT as dictionaries."""

READING_TIMEOUT_SECONDS = 0.2
"""How long a source waits for the reading of another source in the same tick."""


@dataclass(frozen=True, slots=True)
class Reading(Generic[Detail_co]):
    """The result of reading one source in one tick.

    Args:
        detail: values for other parts of the collector, in a type of the source's own.
        rows: rows of the source's tables, with all their columns.
        snapshot: the columns of `metrics` that this source fills.
        state: the state of the source.
        changes: rows about changes, which are never dropped, however long the database is locked.
    """

    detail: Detail_co
    rows: tuple[tuple[Table, Row], ...] = ()
    snapshot: Mapping[str, SqlValue] = field(default_factory=dict)
    state: State = OK
    changes: Sequence[Write] = ()


class Source(Protocol[Detail_co]):
    """Something that is read once per tick.

    `read` is called by one thread at a time. It may block; the other sources are read nevertheless. If it
    raises, no row is written.
    """

    @property
    def name(self) -> str:
        """Name of the source in `collector_health`."""

    @property
    def tables(self) -> tuple[Table, ...]:
        """The tables of its rows."""

    @property
    def defaults(self) -> Mapping[str, SqlValue]:
        """Values of this source's columns of `metrics` while it has no reading."""

    def read(self, tick: "Tick") -> Reading[Detail_co]:
        """Read the source once.

        Raises:
            SourceAbsent: what it reads does not exist on this machine.
            SourceFailed: it exists and could not be read.
        """

    def close(self) -> None:
        """Release what is open."""


class Tick:
    """One sampling moment and its readings, by the name of the source.

    Args:
        timestamp: Unix seconds of every row of the tick.
    """

    def __init__(self, timestamp: int) -> None:
        self.timestamp = timestamp
        self.started = time.monotonic()
        self.readings: dict[str, Future[Reading[Any] | None]] = {}

    def read(self, source: Source[Any]) -> Reading[Any]:
        """Read a source in this thread, and store its reading for other sources.

        Raises:
            SourceAbsent, SourceFailed: see `Source.read`.
        """
        reading = source.read(self)
        self.readings[source.name] = Future()
        self.readings[source.name].set_result(reading)
        return reading

    def wait(self, seconds: float) -> None:
        """Wait until every reading that was started has ended, but at most this long."""
        deadline = time.monotonic() + seconds
        for future in reversed(self.readings.values()):  # once the last one has ended, most others have
            if not future.done():
                with suppress(TimeoutError):
                    future.result(max(0.0, deadline - time.monotonic()))

    def reading_of(
        self, source: Source[Detail_co], timeout: float = READING_TIMEOUT_SECONDS
    ) -> Reading[Detail_co] | None:
        """Return an earlier source's reading of this tick; None if it failed or is not there in time.

        Args:
            source: the other source.
            timeout: the most seconds to wait for its reading.
        """
        future = self.readings.get(source.name)
        if future is None:
            return None
        with suppress(TimeoutError):
            return future.result(timeout)
        return None
