"""Lines per second from a log file to committed rows, compared with `executemany` of parsed lines.

Usage: python -m tests.benchmarks.log_lines [--rounds 5]

Both commit 20,000 rows at a time, the capacity of the buffer, with the same journal and synchronous
settings; they run alternately. Then: the duration of a poll of a file without new lines.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

from collector.daemon.daemon import tune_garbage_collection
from collector.database.buffer import LINE_CAPACITY_ROWS
from collector.database.connection import connect_for_writing
from collector.database.documented import LOGS
from collector.database.migrations import migrate
from collector.parsers.requests.tracker import RequestTracker
from collector.schema import Row
from tests.support.log_reading import file_collector

RECORDINGS = Path(__file__).parents[1] / "recordings" / "logs"
LINES = 100_000
POLLS = 20_000


def long_run(recorded: bytes, times: int) -> bytes:
    """Return a log of one process that has run for days: the recording, repeated with growing stamps."""
    lines = b"\n" + recorded.rstrip()
    return b"".join(lines.replace(b"\n0.", b"\n%d." % minute) for minute in range(1, times + 1))[1:] + b"\n"


def through_reader(directory: Path, log: Path) -> tuple[float, list[Row]]:
    with file_collector(directory / "reader.db", log) as collector:
        started = time.perf_counter()
        while collector.reader.poll() and (collector.reader.has_more or collector.buffer.waiting):
            if collector.buffer.room_for_lines == 0 or not collector.reader.has_more:
                collector.writer.flush()
        elapsed = time.perf_counter() - started
        return elapsed, [tuple(row.values()) for row in collector.rows()]


def bare(directory: Path, rows: list[Row]) -> float:
    connection = connect_for_writing(directory / "bare.db")
    list(migrate(connection, (LOGS,)))
    started = time.perf_counter()
    for start in range(0, len(rows), LINE_CAPACITY_ROWS):
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(LOGS.insert_statement, rows[start : start + LINE_CAPACITY_ROWS])
        connection.execute("COMMIT")
    elapsed = time.perf_counter() - started
    connection.close()
    return elapsed


def microseconds_per_poll(directory: Path, log: Path) -> float:
    with file_collector(directory / "polls.db", log) as collector:
        collector.poll()
        started = time.perf_counter()
        for _ in range(POLLS):
            collector.reader.poll()
        return (time.perf_counter() - started) / POLLS * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    tune_garbage_collection()  # as the collector does after its start
    for name in ("single.log", "single.jsonl", "xllamacpp-2026.4.8672.log"):
        recorded = (RECORDINGS / name).read_bytes()
        data = long_run(recorded, LINES // recorded.count(b"\n"))
        seconds: dict[str, list[float]] = {"reader": [], "with requests": [], "bare": []}
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as scratch:
                log = Path(scratch) / "llama.log"
                log.write_bytes(data)
                time.sleep(1)  # longer than a record waits for its other lines
                with patch.object(RequestTracker, "add", lambda *_: []):
                    elapsed, rows = through_reader(Path(scratch), log)
                seconds["reader"].append(elapsed)
                seconds["bare"].append(bare(Path(scratch), rows))
            with tempfile.TemporaryDirectory() as scratch:
                log = Path(scratch) / "llama.log"
                log.write_bytes(data)
                time.sleep(1)
                seconds["with requests"].append(through_reader(Path(scratch), log)[0])
        reader, full, plain = (len(rows) / statistics.median(taken) for taken in seconds.values())
        print(
            f"{name:<26} reader {reader:9,.0f} rows/s   executemany {plain:9,.0f} rows/s   "
            f"ratio {reader / plain:.2f}   (goal: at least 0.55)   with requests {full / plain:.2f}"
        )
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "llama.log"
        log.write_bytes((RECORDINGS / "single.log").read_bytes())
        print(
            f"a poll of a file with nothing new: {microseconds_per_poll(Path(scratch), log):.1f} µs   (goal: below 50)"
        )


if __name__ == "__main__":
    main()
