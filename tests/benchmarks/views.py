"""How long each view takes for a day, over a million rows a table, beside the collector's writes.

Usage: python -m tests.benchmarks.views [--rows 1000000] [--rounds 5]

One sample every 5 seconds (a million is 58 days), two models that take turns, two GPUs, a log line a sample.
A writer commits a sample every 0.2 seconds meanwhile.
"""

import argparse
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from collector.catalog import OWN_TABLES
from collector.database import Database
from collector.database.connection import connect_read_only
from collector.database.documented import LOGS, METRICS, MODELS
from collector.errors import DatabaseBusy
from collector.logs.rows.requests import REQUESTS
from collector.schema import SqlValue, Table
from collector.sources.gpu.source import GPU_METRICS
from collector.sources.host import HOST_METRICS
from collector.sources.llama.events import MODEL_EVENTS
from collector.sources.llama.metrics import LLAMA_METRICS
from collector.views import VIEWS

INTERVAL_SECONDS, DAY_SECONDS, GPUS = 5, 86_400, 2
SERVER = "127.0.0.1:8080"
TURN_SAMPLES = 4_320
"""How long one model stays loaded: six hours."""

Values = dict[str, SqlValue]


def sample(number: int, timestamp: int) -> Iterator[tuple[Table, Values]]:
    """Yield the rows of one tick."""
    turn, step = divmod(number, TURN_SAMPLES)
    model, finished = f"model-{turn % 2}", step % 10 == 0
    if finished:
        yield (
            REQUESTS,
            {
                "timestamp": timestamp,
                "model": model,
                "task": number,
                "time_source": "stamp",
                "outcome": "finished",
                "prompt_tokens": 2000,
                "processed_tokens": 500,
                "cached_tokens": 1500,
                "generated_tokens": 400,
                "prompt_ms": 700.0,
                "generation_ms": 9000.0,
                "total_ms": 9700.0,
                "other_requests": 0,
                "context_tokens": 2400,
            },
        )
    yield METRICS, {"cpu_usage": 20.0, "active_models": 1, "uptime": 100.0 + number, "timestamp": timestamp}
    yield HOST_METRICS, {"timestamp": timestamp, "cpu_usage": 30.0, "memory_usage": 50.0}
    for gpu in range(GPUS):
        yield (
            GPU_METRICS,
            {
                "timestamp": timestamp,
                "gpu_index": gpu,
                "uuid": f"GPU-{gpu}",
                "memory_used_mb": 9000.0,
                "power_watts": 200.0,
                "energy_joules": 1000.0 * number,
                "energy_used_joules": 1000.0,
            },
        )
    yield (
        LLAMA_METRICS,
        {
            "timestamp": timestamp,
            "model": model,
            "model_id": model,
            "prompt_tokens_total": 300.0 * (step // 10),
            "prompt_seconds_total": 0.3 * (step // 10),
            "prompt_tokens_cached_total": 100.0 * (step // 10),
            "tokens_predicted_total": 120.0 * (step // 10),
            "tokens_predicted_seconds_total": 4.0 * (step // 10),
            "n_decode_total": 40.0 * step,
            "requests_processing": float(step % 3 == 0),
            "predicted_tokens_per_second": 30.0 if finished else None,
            "prompt_tokens_per_second": 1000.0 if finished else None,
            "uptime_seconds": float(step * INTERVAL_SECONDS),
            "server": SERVER,
            "run_id": turn + 1,
            "counted_from_zero": int(step == 0),
        },
    )
    level = "error" if number % 50 == 0 else "info"
    yield (
        LOGS,
        {
            "level": level,
            "message": f"slot release: id 0 | task {number}",
            "source": model,
            "timestamp": timestamp,
        },
    )
    if step == 0:
        loaded: Values = {"event": "loaded", "state": "loaded", "server": SERVER, "run_id": turn + 1}
        yield MODEL_EVENTS, {"timestamp": timestamp, "model": model, **loaded}


def fill(connection: sqlite3.Connection, samples: int, first: int) -> None:
    for number in range(2):
        values: Values = {"id": f"model-{number}", "name": f"model-{number}", "status": "loaded"}
        connection.execute(MODELS.insert_statement, MODELS.row(values))
    for start in range(0, samples, 20_000):
        rows: dict[Table, list[tuple[SqlValue, ...]]] = {}
        for number in range(start, min(start + 20_000, samples)):
            for table, values in sample(number, first + number * INTERVAL_SECONDS):
                rows.setdefault(table, []).append(table.row(values))
        for table, some in rows.items():
            connection.executemany(table.insert_statement, some)


def keep_writing(database: Database, first: int, samples: int, stop: threading.Event) -> None:
    number = samples
    while not stop.wait(0.2):
        try:
            with database.transaction() as connection:
                for table, values in sample(number, first + number * INTERVAL_SECONDS):
                    connection.execute(table.insert_statement, table.row(values))
            number += 1
        except DatabaseBusy:
            print("  a commit waited for a reader")  # the collector would keep its rows and try again


def day_of(view: str, middle: int) -> tuple[str, tuple[int, ...]]:
    """Return a query of one day of a view, or of all of it where it has no timestamp."""
    if view in ("now", "unused_models", "model_residency"):
        return f"SELECT * FROM {view}", ()
    return f"SELECT * FROM {view} WHERE timestamp >= ? AND timestamp < ?", (middle, middle + DAY_SECONDS)


def measure(path: Path, samples: int, rounds: int) -> None:
    first = (int(time.time()) - samples * INTERVAL_SECONDS) // 3600 * 3600
    with Database(path, OWN_TABLES, VIEWS) as database:
        with database.transaction() as connection:
            fill(connection, samples, first)
        stop = threading.Event()
        writer = threading.Thread(target=keep_writing, args=(database, first, samples, stop))
        writer.start()
        try:
            with closing(connect_read_only(path)) as reader:
                for view in VIEWS:
                    report(reader, view.name, first + samples * INTERVAL_SECONDS // 2, rounds)
        finally:
            stop.set()
            writer.join()


def report(reader: sqlite3.Connection, view: str, middle: int, rounds: int) -> None:
    question, bounds = day_of(view, middle)
    milliseconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        rows = len(reader.execute(question, bounds).fetchall())
        milliseconds.append((time.perf_counter() - started) * 1000)
    print(
        f"{view:<18} {statistics.median(milliseconds):8.1f} ms  {rows:6} rows   (goal: under 200 ms)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        measure(Path(directory) / "views.db", options.rows, options.rounds)


if __name__ == "__main__":
    main()
