"""What the readers of log files and of the journal have in common: the table of positions, and the sink.

A reader is polled about once a second, always by the same thread. It adds rows, and the position after them,
to the buffer in one call, so that both are committed or neither. That is why every line is stored exactly
once: after a crash, reading continues at the committed position. While the buffer is full it reads nothing.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from collector.database.buffer import Buffer, Retention
from collector.database.documented import LOGS
from collector.database.repositories.base import Connected
from collector.health import State
from collector.logs.position import Models
from collector.logs.rows.requests import LOG_FILE, REQUESTS, Origin, request_rows
from collector.logs.rows.router_events import ROUTER_EVENTS, LogOfRouter, router_event_rows
from collector.parsers.log.lines import spawned_child
from collector.parsers.log.record import LEVELS, Record
from collector.parsers.requests.request import Request
from collector.schema import Column, Row, Table, Write

LOG_POSITIONS = Table(
    "log_positions",
    "One row a log file or journal: up to where it has been read. Committed together with its lines.",
    (
        Column(
            "name",
            "TEXT PRIMARY KEY",
            "key",
            "path of the log file as it is configured, `journal`, or `journal requests`",
        ),
        Column(
            "position",
            "TEXT NOT NULL",
            "text",
            "JSON for the collector itself: files and offsets, or the cursor",
        ),
        Column("updated_at", "INTEGER NOT NULL", "time", "Unix seconds of the last change"),
    ),
)

LLAMA_SERVER = "llama-server"
"""`logs.source` of lines that no child of a router wrote."""

SETTLE_SECONDS = 0.5
"""The newest record waits this long for more lines that belong to it."""

_MAX_MODELS = 256


class LogReader(Protocol):
    """A reader that stores log lines."""

    @property
    def name(self) -> str:
        """Its name in `collector_health`."""

    @property
    def has_more(self) -> bool:
        """Whether the last poll left something unread: poll again as soon as the buffer has room."""

    def poll(self) -> State:
        """Read what was added since the last poll, as far as the buffer has room.

        Raises:
            SourceAbsent: there is nothing to read on this machine.
            SourceFailed: it exists and cannot be read.
        """

    def close(self) -> None:
        """Close all files."""


class LogSink:
    """The buffer as the readers use it.

    Args:
        buffer: where rows and positions wait for the commit.
        minimum_level: records of lesser levels are not stored.
        has_clients: whether rows of `requests` contain the addresses of clients.
    """

    def __init__(self, buffer: Buffer, minimum_level: str = "debug", *, has_clients: bool = False) -> None:
        self._has_clients = has_clients
        self._buffer = buffer
        self._levels = frozenset(LEVELS[LEVELS.index(minimum_level) :])

    @property
    def room(self) -> int:
        """How many records may be added now."""
        return self._buffer.room_for_lines

    def rows(
        self,
        records: Sequence[Record],
        times: Sequence[int],
        models: Models,
        writer_name: str = LLAMA_SERVER,
    ) -> tuple[list[Row], Models]:
        """Return rows of `logs`, and the models of a router's children after these records.

        A router writes which model the child of a port serves, before it prints lines of that child.

        Args:
            records: in their order.
            times: Unix seconds of each.
            models: by port, before these records.
            writer_name: `logs.source` of records that no child wrote.
        """
        rows: list[Row] = []
        for record, timestamp in zip(records, times, strict=True):
            level, message = record.level or "info", record.message
            source = record.writer or writer_name
            if record.port:
                source = models.get(record.port, source)
            if " on port " in message:
                models = add_child(models, record)
            if level in self._levels:
                rows.append((level, message, source, timestamp))
        return rows, models

    def requests(self, requests: Sequence[Request], models: Models, origin: Origin = LOG_FILE) -> Write:
        """Return the rows of `requests`.

        Args:
            requests: they have just ended.
            models: of the router's children, by port.
            origin: how they came.
        """
        origin = origin._replace(has_clients=self._has_clients)
        return REQUESTS.insert(*request_rows(requests, models, time.time(), origin))

    def router_events(
        self, records: Sequence[Record], moments: Sequence[float], models: Models, log: LogOfRouter
    ) -> Write:
        """Return the rows of `router_events`; arguments as those of `router_event_rows`."""
        return ROUTER_EVENTS.insert(*router_event_rows(records, moments, models, log))

    def put(
        self, rows: list[Row], positions: Mapping[str, str], size_bytes: int, others: Sequence[Write] = ()
    ) -> None:
        """Add rows and the position after them to the buffer, for the same commit.

        Args:
            rows: of `logs`; there may be none.
            positions: JSON by name.
            size_bytes: size of the lines that the rows were made of.
            others: rows of other tables that were made of them.
        """
        now = int(time.time())
        stored = LOG_POSITIONS.replace(*((name, position, now) for name, position in positions.items()))
        writes = [LOGS.insert(*rows), *(write for write in others if write.rows), stored]
        self._buffer.add(writes, Retention.REREADABLE, size_bytes)


def add_child(models: Models, record: Record) -> Models:
    """Return the models of a router's children, by port, after a record, which may name another child."""
    if record.port or not (child := spawned_child(record.message)):
        return models
    others = [item for item in models.items() if item[0] != child[0]]
    return dict([*others, child][-_MAX_MODELS:])  # those named longest ago are removed


def stored_positions(database: Connected) -> dict[str, str]:
    """Return the committed positions by name."""
    return {
        row["name"]: row["position"] for row in database.query("SELECT name, position FROM log_positions")
    }
