"""Log readers with a real database, without the daemon."""

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from collector.database import Database
from collector.database.buffer import Buffer
from collector.database.writer import Writer
from collector.health import State
from collector.logs.files import LogFileReader
from collector.logs.reader import LOG_POSITIONS, LogReader, LogSink, stored_positions
from collector.logs.rows.requests import REQUESTS
from collector.logs.rows.router_events import ROUTER_EVENTS

MakeReader = Callable[[LogSink, dict[str, str]], LogReader]


class LogCollector:
    """One run of a collector that reads logs: from its start to its stop, or to a crash.

    Args:
        database: path of the database.
        make_reader: returns the reader under test.
        minimum_level: of the lines that are stored.
        buffer: where rows wait.
    """

    def __init__(
        self,
        database: Path,
        make_reader: MakeReader,
        minimum_level: str = "debug",
        buffer: Buffer | None = None,
    ) -> None:
        self.database = Database(database, (LOG_POSITIONS, REQUESTS, ROUTER_EVENTS))
        self.buffer = buffer or Buffer()
        self.writer = Writer(self.database, self.buffer)
        self.reader = make_reader(LogSink(self.buffer, minimum_level), stored_positions(self.database))

    def poll(self) -> State:
        """Poll and commit until nothing is unread."""
        while True:
            try:
                state = self.reader.poll()
            finally:
                self.writer.flush()
            if not self.reader.has_more:
                return state

    def rows(self) -> list[dict[str, Any]]:
        return self.database.query("SELECT level, message, source, timestamp FROM logs ORDER BY id")

    def messages(self) -> list[str]:
        return [row["message"] for row in self.rows()]

    def poll_until(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        """Poll as the daemon does, until a condition is true."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "the condition did not become true in time"
            self.poll()
            time.sleep(0.02)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End as a crash does: what was not committed is lost."""
        self.reader.close()
        self.database.close()


def file_collector(
    database: Path, *patterns: str | Path, minimum_level: str = "debug", buffer: Buffer | None = None
) -> LogCollector:
    """Return a collector that reads these files."""

    def make(sink: LogSink, positions: dict[str, str]) -> LogReader:
        return LogFileReader([str(pattern) for pattern in patterns], sink, positions)

    return LogCollector(database, make, minimum_level, buffer)
