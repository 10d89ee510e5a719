"""The threads that read llama-server's output: one per reader, independent of the samples."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from collector.database import Database
from collector.database.buffer import Buffer
from collector.health import Health, observe
from collector.logs.reader import LogReader
from collector.settings import LogsSettings, Settings

FILES_INTERVAL_SECONDS = 1.0
JOURNAL_INTERVAL_SECONDS = 5.0
"""A poll of the journal is a child process of about 10 ms; a poll of a file takes microseconds."""

BACKLOG_PAUSE_SECONDS = 0.02
"""Pause while there is more to read than the buffer has room for: the writer needs the interpreter too."""


_SUFFIXES = ("", "-journal", "-wal", "-shm", ".lock")
"""Of the database file and the files beside it."""


class LogThreads:
    """One thread per log reader that the settings ask for; no reader and no thread without such settings.

    A backlog, for example the log of a day in which the collector did not run, is read in rounds: the reader
    fills the buffer, and the thread flushes it and continues after a short pause. If the flush fails (the
    database is locked), the reader waits for its normal interval: the lines stay in the log, not in memory.

    Args:
        settings: name the logs, and the collector's own files.
        database: contains the positions up to which the logs were read.
        buffer: receives lines and positions.
        flush: flushes the buffer; returns whether it succeeded.
        must_wait: whether the file is too large at the moment: the next prune makes room.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        buffer: Buffer,
        flush: Callable[[], bool],
        must_wait: Callable[[], bool],
    ) -> None:
        self._stop = threading.Event()
        self._flush = flush
        self._must_wait = must_wait
        readers = _create_readers(settings.logs, database, buffer, _own_files(settings))
        self.health = tuple(Health(reader.name) for reader, _ in readers)
        self._threads = [
            threading.Thread(
                target=self._run, args=(reader, interval, health), name=f"logs {reader.name}", daemon=True
            )
            for (reader, interval), health in zip(readers, self.health, strict=True)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def close(self, seconds: float) -> None:
        """Stop the threads, and wait at most this long: the last flush includes what they read."""
        self._stop.set()
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self, reader: LogReader, interval: float, health: Health) -> None:
        while not self._stop.is_set():
            can_continue = False
            if not self._must_wait():
                observe(health, reader.poll, lambda state: state)
                can_continue = reader.has_more and self._flush()
            self._stop.wait(BACKLOG_PAUSE_SECONDS if can_continue else interval)
        reader.close()


def _own_files(settings: Settings) -> list[Path]:
    """Return the collector's own files and secrets, which must never become log lines."""
    own_files = [Path(f"{settings.database_path}{suffix}") for suffix in _SUFFIXES]
    if key := settings.llama_server.api_key_file:
        own_files.append(Path(key).expanduser())
    return own_files


def _create_readers(
    settings: LogsSettings, database: Database, buffer: Buffer, own_files: Sequence[Path]
) -> Sequence[tuple[LogReader, float]]:
    """Return each reader that the settings ask for, with its interval; import only the modules needed."""
    if not settings.files and not settings.journal_units:
        return ()
    from collector.logs.reader import LogSink, stored_positions

    sink = LogSink(buffer, settings.minimum_level, has_clients=settings.client_addresses)
    positions = stored_positions(database)
    readers: list[tuple[LogReader, float]] = []
    if settings.files:
        from collector.logs.files import LogFileReader

        readers.append(
            (LogFileReader(settings.files, sink, positions, lambda: own_files), FILES_INTERVAL_SECONDS)
        )
    if settings.journal_units:
        from collector.logs.journal.reader import JournalReader

        readers.append((JournalReader(settings.journal_units, sink, positions), JOURNAL_INTERVAL_SECONDS))
    return readers
