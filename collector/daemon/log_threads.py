"""The threads that read llama-server's output: one a reader, apart from the samples."""

import threading
from collections.abc import Callable, Sequence

from collector.database import Database
from collector.database.buffer import Buffer
from collector.health import Health, State, observe
from collector.logs.reader import LogReader
from collector.settings import LogsSettings

FILES_INTERVAL_SECONDS = 1.0
JOURNAL_INTERVAL_SECONDS = 5.0
"""A look at the journal is a child process of some 10 ms; a look at a file takes microseconds."""

BEHIND_SECONDS = 0.02
"""Pause while there is more to read than the buffer takes: the writer needs the interpreter as well."""


class LogPoller:
    """Polls every reader that the settings ask for; none, and no thread, where they ask for nothing.

    Args:
        settings: files, units, minimum level.
        database: holds the positions up to which was read.
        buffer: where lines and positions go.
        make_room: commits what waits; whether it could.
    """

    def __init__(
        self, settings: LogsSettings, database: Database, buffer: Buffer, make_room: Callable[[], bool]
    ) -> None:
        self._stop = threading.Event()
        self._make_room = make_room
        readers = _readers(settings, database, buffer)
        self.health = tuple(Health(reader.name) for reader, _ in readers)
        self._threads = [
            threading.Thread(
                target=self._work, args=(reader, interval, health), name=f"logs {reader.name}", daemon=True
            )
            for (reader, interval), health in zip(readers, self.health, strict=True)
        ]

    def start(self) -> None:
        """Begin to read."""
        for thread in self._threads:
            thread.start()

    def close(self, seconds: float) -> None:
        """End the threads, waiting at most this long: what was read goes into the last commit."""
        self._stop.set()
        for thread in self._threads:
            thread.join(seconds)

    def _work(self, reader: LogReader, interval: float, health: Health) -> None:
        while not self._stop.is_set():
            observe(health, reader.poll, _same)
            goes_on = reader.has_more and self._make_room()
            self._stop.wait(BEHIND_SECONDS if goes_on else interval)
        reader.close()


def _readers(settings: LogsSettings, database: Database, buffer: Buffer) -> Sequence[tuple[LogReader, float]]:
    if not settings.files and not settings.journal_units:
        return ()
    from collector.logs.reader import LogSink, stored_positions

    sink, positions = LogSink(buffer, settings.minimum_level), stored_positions(database)
    readers: list[tuple[LogReader, float]] = []
    if settings.files:
        from collector.logs.files import LogFileReader

        readers.append((LogFileReader(settings.files, sink, positions), FILES_INTERVAL_SECONDS))
    if settings.journal_units:
        from collector.logs.journal import JournalReader

        readers.append((JournalReader(settings.journal_units, sink, positions), JOURNAL_INTERVAL_SECONDS))
    return readers


def _same(state: State) -> State:
    return state
