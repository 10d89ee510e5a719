"""Measure how long flushes wait while a million rows of `metrics` and of `logs` are pruned to 100,000.

Usage: python -m tests.benchmarks.prune [--rows 1000000]

A writer flushes ten samples every 0.2 s, first alone, then beside the prune; then the steps that return free
pages to the file system are timed alone.
"""

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from collector.database import Database
from collector.database.buffer import Buffer, Retention
from collector.database.documented import LOGS, METRICS
from collector.database.space import RELEASE_PAGES, read_space, release_pages
from collector.database.writer import Writer
from collector.history import shrinking
from collector.history.retention import Prune
from collector.schema import BYTES_PER_MB
from collector.settings import RetentionSettings

NOW, KEPT_ROWS = 1_700_000_000, 100_000


class Flushes(threading.Thread):
    """A thread that flushes every 0.2 s and records how long each flush took."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._writer = Writer(database, buffer := Buffer())
        self._buffer = buffer
        self._ended = threading.Event()
        self.milliseconds: list[float] = []

    def run(self) -> None:
        while not self._ended.wait(0.2):
            row = (1.5, 2.5, 3.5, 1, 100.0, 50.0, 1024.0, 8192.0, 0.0, NOW)
            self._buffer.add([METRICS.insert(*[row] * 10)], Retention.DROPPABLE)
            started = time.perf_counter()
            self._writer.flush()
            self.milliseconds.append(1000 * (time.perf_counter() - started))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()


def fill(database: Database, rows: int) -> None:
    levels = ("debug", "info", "warn")
    with database.transaction() as connection:
        connection.executemany(
            METRICS.insert_statement,
            ((1.5, 2.5, 3.5, 1, 100.0, 50.0, 1024.0, 8192.0, 0.0, NOW - rows + i) for i in range(rows)),
        )
        connection.executemany(
            LOGS.insert_statement,
            (
                (levels[i % 3], f"slot release: task {i} | stop processing", "llama-server", NOW - rows + i)
                for i in range(rows)
            ),
        )


def print_times(name: str, milliseconds: Iterable[float]) -> None:
    values = sorted(milliseconds)
    if not values:
        print(f"{name:<24}     0 times")
        return
    percentile = values[int(0.99 * (len(values) - 1))]
    print(
        f"{name:<24} {len(values):5} times   median {statistics.median(values):6.1f} ms   "
        f"99 % {percentile:6.1f} ms   worst {values[-1]:6.1f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    settings = RetentionSettings(metrics_max_rows=KEPT_ROWS, logs_max_rows=KEPT_ROWS)
    with tempfile.TemporaryDirectory() as directory, Database(Path(directory) / "llama.db") as database:
        fill(database, rows)
        with Flushes(database) as alone:
            time.sleep(10)
        print_times("flush alone", alone.milliseconds)
        shrinking.RESERVE_BYTES = 2**62  # the pages are released below
        started = time.perf_counter()
        with Flushes(database) as beside:
            summary = Prune(database, (), settings, threading.Event()).run()
        seconds = time.perf_counter() - started
        print_times("flush beside the prune", beside.milliseconds)
        deleted = sum(summary.deleted.values())
        print(
            f"{deleted:,} rows deleted in {seconds:.1f} s: {deleted / seconds:,.0f} rows/s, pauses included"
        )
        steps = []
        while read_space(database).free_bytes:
            started = time.perf_counter()
            release_pages(database)
            steps.append(1000 * (time.perf_counter() - started))
        print_times(f"{RELEASE_PAGES} pages released", steps)
        after = read_space(database).size_bytes
        print(f"{summary.size_before_bytes / BYTES_PER_MB:.1f} MB before, {after / BYTES_PER_MB:.1f} MB now")


if __name__ == "__main__":
    main()
