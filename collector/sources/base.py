"""The interface of a source: an object that is read once per tick and returns rows."""

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
        detail: values for other sources; their type depends on the source.
        rows: rows of the tables of the source.
        snapshot: the columns of `metrics` that this source fills.
        state: the state of the source.
        changes: rows about changes, which are never dropped, even if the database is locked for hours.
    """

    detail: Detail_co
    rows: tuple[tuple[Table, Row], ...] = ()
    snapshot: Mapping[str, SqlValue] = field(default_factory=dict)
    state: State = OK
    changes: Sequence[Write] = ()


class Source(Protocol[Detail_co]):
    """An object that is read once per tick.

    `read` is called by one thread at a time. It may block: another thread then reads the other sources. If it
    raises, the source has no rows in this tick.
    """

    @property
    def name(self) -> str:
        """Name of the source in `collector_health`."""

    @property
    def tables(self) -> tuple[Table, ...]:
        """The tables that it fills."""

    @property
    def defaults(self) -> Mapping[str, SqlValue]:
        """Values of its columns of `metrics` if it has no reading."""

    def read(self, tick: "Tick") -> Reading[Detail_co]:
        """Read the source once.

        Raises:
            SourceAbsent: this machine does not have what the source reads.
            SourceFailed: it has it, but it could not be read.
        """

    def close(self) -> None:
        """Close files, connections and libraries that it has opened."""


class Tick:
    """One moment of sampling, and the readings of the sources in it.

    Args:
        timestamp: Unix seconds of every row of the tick.
    """

    def __init__(self, timestamp: int) -> None:
        self.timestamp = timestamp
        self.started = time.monotonic()
        self.readings: dict[str, Future[Reading[Any] | None]] = {}

    def read(self, source: Source[Any]) -> Reading[Any]:
        """Read a source in this thread, and store its reading for other sources. Used outside the daemon.

        Raises:
            SourceAbsent, SourceFailed: see `Source.read`.
        """
        reading = source.read(self)
        self.readings[source.name] = Future()
        self.readings[source.name].set_result(reading)
        return reading

    def wait(self, seconds: float) -> None:
        """Wait until all readings that were started have ended, but at most this long."""
        deadline = time.monotonic() + seconds
        for future in reversed(
            self.readings.values()
        ):  # when the last one has ended, most others have as well
            if not future.done():
                with suppress(TimeoutError):
                    future.result(max(0.0, deadline - time.monotonic()))

    def reading_of(
        self, source: Source[Detail_co], timeout: float = READING_TIMEOUT_SECONDS
    ) -> Reading[Detail_co] | None:
        """Return the reading of an earlier source in this tick; None if it failed or did not arrive in time.

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
