"""What the readers of log files and of the journal share: rows, positions, and where both go.

A reader is polled about once a second, always by the same thread. It reads what has come, puts rows and
the position after them into the buffer for one commit, and stops while the buffer has no room.
"""

import time
from collections.abc import Sequence
from typing import Protocol

from collector.database.buffer import Buffer, Retention
from collector.database.documented import LOGS
from collector.database.repositories.base import Connected
from collector.health import State
from collector.parsers.log_lines import LEVELS, Record, spawned_child
from collector.schema import Column, Row, Table

LOG_POSITIONS = Table(
    "log_positions",
    "One row a log file or journal: up to where it has been read. Committed together with its lines.",
    (
        Column("name", "TEXT PRIMARY KEY", "key", "path of the log file as it is configured, or `journal`"),
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
"""The newest record waits this long for lines that belong to it."""

_MAX_MODELS = 256


class LogReader(Protocol):
    """Something that brings lines into `logs`."""

    @property
    def name(self) -> str:
        """Stands in `collector_health`."""

    @property
    def behind(self) -> bool:
        """Whether the last poll left something unread: poll again as soon as there is room."""

    def poll(self) -> State:
        """Read what has come since the last call, as far as there is room.

        Raises:
            SourceAbsent: there is nothing to read here.
            SourceFailed: it is there and cannot be read.
        """

    def close(self) -> None:
        """Give back what is held open."""


class LogSink:
    """Puts records into the buffer, each with the position after it.

    Args:
        buffer: where they wait for the commit.
        minimum_level: records of lesser levels are left out.
    """

    def __init__(self, buffer: Buffer, minimum_level: str = "debug") -> None:
        self._buffer = buffer
        self._levels = frozenset(LEVELS[LEVELS.index(minimum_level) :])

    @property
    def room(self) -> int:
        """How many records may be put now."""
        return self._buffer.room_for_lines

    def rows(
        self,
        records: Sequence[Record],
        times: Sequence[int],
        models: dict[int, str],
        speaker: str = LLAMA_SERVER,
    ) -> list[Row]:
        """Rows of `logs`.

        Args:
            records: in their order.
            times: Unix seconds of each.
            models: by port of the router's children; what the records tell is added.
            speaker: who wrote what no child wrote.
        """
        rows: list[Row] = []
        for record, timestamp in zip(records, times, strict=True):
            level, message = record.level or "info", record.message
            source = models.get(record.port, speaker) if record.port else speaker
            if " on port " in message and not record.port and (child := spawned_child(message)):
                _learn(models, *child)
            if level in self._levels:
                rows.append((level, message, source, timestamp))
        return rows

    def put(self, rows: list[Row], name: str, position: str, size_bytes: int) -> None:
        """Hand rows and position over for one commit."""
        stored = LOG_POSITIONS.replace((name, position, int(time.time())))
        self._buffer.add([LOGS.insert(*rows), stored], Retention.REREADABLE, size_bytes)


def stored_positions(database: Connected) -> dict[str, str]:
    """The committed positions, by name."""
    return {
        row["name"]: row["position"] for row in database.query("SELECT name, position FROM log_positions")
    }


def _learn(models: dict[int, str], port: int, model: str) -> None:
    models.pop(port, None)
    models[port] = model
    if len(models) > _MAX_MODELS:
        del models[next(iter(models))]
