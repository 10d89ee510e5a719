"""What a source is: something that is read once a tick and gives rows."""

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
"""How long one source waits for another's reading of the same tick."""


@dataclass(frozen=True, slots=True)
class Reading(Generic[Detail_co]):
    """What one source saw in one tick.

    Args:
        detail: what other sources may use of it.
        rows: rows for the source's tables, complete but for nothing.
        snapshot: the columns of `metrics` that this source knows.
        state: how the source fares.
        changes: changes of state, which are never dropped, however long the database is locked.
    """

    detail: Detail_co
    rows: tuple[tuple[Table, Row], ...] = ()
    snapshot: Mapping[str, SqlValue] = field(default_factory=dict)
    state: State = OK
    changes: Sequence[Write] = ()


class Source(Protocol[Detail_co]):
    """One thing that is read.

    `read` may block, and holds up no other source then. It is called by one thread at a time. Where
    there is nothing to read it raises SourceAbsent, where reading fails SourceFailed; then no row
    is written.
    """

    @property
    def name(self) -> str:
        """Stands in `collector_health`."""

    @property
    def tables(self) -> tuple[Table, ...]:
        """The tables that its rows go to."""

    @property
    def defaults(self) -> Mapping[str, SqlValue]:
        """What `metrics` holds in this source's columns while it gives no reading."""

    def read(self, tick: "Tick") -> Reading[Detail_co]:
        """Read once.

        Raises:
            SourceAbsent: what it reads does not exist here.
            SourceFailed: it exists and could not be read.
        """

    def close(self) -> None:
        """Give back what is held open."""


class Tick:
    """One sampling moment and the readings that belong to it.

    Args:
        timestamp: Unix seconds, for every row of the tick.
    """

    def __init__(self, timestamp: int) -> None:
        self.timestamp = timestamp
        self.started = time.monotonic()
        self.readings: dict[str, Future[Reading[Any] | None]] = {}

    def read(self, source: Source[Any]) -> Reading[Any]:
        """Read a source here and now, and keep its reading for others.

        Raises:
            SourceAbsent, SourceFailed: see `Source.read`.
        """
        reading = source.read(self)
        self.readings[source.name] = Future()
        self.readings[source.name].set_result(reading)
        return reading

    def wait(self, seconds: float) -> None:
        """Wait until every reading that was started has ended, at most this long."""
        deadline = time.monotonic() + seconds
        for future in reversed(self.readings.values()):  # after the last one the others have mostly ended
            if not future.done():
                with suppress(TimeoutError):
                    future.result(max(0.0, deadline - time.monotonic()))

    def reading_of(
        self, source: Source[Detail_co], patience: float = READING_TIMEOUT_SECONDS
    ) -> Reading[Detail_co] | None:
        """An earlier source's reading of this very tick; None where it failed or takes too long."""
        future = self.readings.get(source.name)
        if future is None:
            return None
        with suppress(TimeoutError):
            return future.result(patience)
        return None
