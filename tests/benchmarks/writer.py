"""Rows per second of the writer into `metrics` and `logs`, compared with a bare `executemany`.

Usage: python -m tests.benchmarks.writer [--rounds 5]

Both commit 1,000 rows at a time with the same journal and synchronous settings; they alternate.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from collector.database import Database
from collector.database.buffer import Buffer, Retention
from collector.database.connection import connect_for_writing
from collector.database.documented import LOGS, METRICS
from collector.database.migrations import migrate
from collector.database.writer import Writer
from collector.schema import Row, Table

ROWS, ROWS_A_COMMIT = 50_000, 1_000
NOW = 1_700_000_000

SAMPLES: dict[Table, list[Row]] = {
    METRICS: [(1.5, 2.5, 3.5, 1, 100.0, 50.0, 1024.0, 8192.0, 0.0, NOW + i) for i in range(ROWS)],
    LOGS: [("info", f"slot release: task {i} | stop processing", "llama-server", NOW + i) for i in range(ROWS)],
}  # fmt: skip


def chunks(rows: list[Row]) -> list[list[Row]]:
    return [rows[start : start + ROWS_A_COMMIT] for start in range(0, len(rows), ROWS_A_COMMIT)]


def through_writer(path: Path, table: Table, pieces: list[list[Row]]) -> float:
    with Database(path) as database:
        buffer = Buffer()
        writer = Writer(database, buffer)
        started = time.perf_counter()
        for piece in pieces:
            if table is METRICS:
                buffer.add([METRICS.insert(*(row for row in piece))], Retention.DROPPABLE)
            else:
                buffer.add([table.insert(*piece)], Retention.KEPT)
            writer.flush()
        return time.perf_counter() - started


def bare(path: Path, table: Table, pieces: list[list[Row]]) -> float:
    connection = connect_for_writing(path)
    list(migrate(connection, (table,)))
    started = time.perf_counter()
    for piece in pieces:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(table.insert_statement, piece)
        connection.execute("COMMIT")
    elapsed = time.perf_counter() - started
    connection.close()
    return elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    for table, rows in SAMPLES.items():
        seconds: dict[str, list[float]] = {"writer": [], "bare": []}
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as directory:
                seconds["writer"].append(through_writer(Path(directory) / "w.db", table, chunks(rows)))
                seconds["bare"].append(bare(Path(directory) / "b.db", table, chunks(rows)))
        writer, plain = (ROWS / statistics.median(seconds[name]) for name in ("writer", "bare"))
        print(
            f"{table.name:<8} writer {writer:9,.0f} rows/s   executemany {plain:9,.0f} rows/s   "
            f"ratio {writer / plain:.2f}   (goal: at least 0.8)"
        )


if __name__ == "__main__":
    main()
