"""Create in minutes a database such as the collector writes in years."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from collector.backups.files import sync_to_disk
from collector.catalog import OWN_TABLES
from collector.database import Database
from collector.database.documented import LOGS, METRICS, MODELS
from collector.schema import Table
from collector.sources.gpu.source import GPU_METRICS
from collector.sources.host import HOST_METRICS
from collector.sources.llama.events import MODEL_EVENTS
from collector.sources.llama.metrics import LLAMA_METRICS
from collector.views import VIEWS

INTERVAL_SECONDS, MODELS_COUNT = 5, 20
TABLES = (METRICS, HOST_METRICS, GPU_METRICS, LLAMA_METRICS, LOGS)
"""Tables with one row per sample."""

_SAMPLES_PER_MODEL = 4320  # while one model is loaded: six hours
_SAMPLES_PER_TRANSACTION = 200_000
_FAST = """
PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE; PRAGMA cache_size = -200000;
"""
_MODEL = f"'model-' || (x / {_SAMPLES_PER_MODEL} % {MODELS_COUNT})"
_SAMPLE_OF_MODEL = f"(x % {_SAMPLES_PER_MODEL})"
_EVERY_TENTH = "CASE x % 10 WHEN 0 THEN {} END"
_EXPRESSIONS: dict[str, str] = {
    "gpu_index": "0",
    "uuid": "'GPU-0'",
    "name": "'NVIDIA GeForce RTX 3090'",
    "energy_joules": "1000.0 * x",
    "energy_used_joules": "1000.0",
    "vendor": "'nvidia'",
    "bus_address": "'0000:01:00.0'",
    "model": _MODEL,
    "model_id": _MODEL,
    "source": _MODEL,
    "level": "CASE WHEN x % 50 = 0 THEN 'error' ELSE 'info' END",
    "message": "'slot release: id 0 | task ' || x || ' | stop processing: n_tokens = 2048, truncated = 0'",
    "prompt_tokens_per_second": _EVERY_TENTH.format("1000.5"),
    "predicted_tokens_per_second": _EVERY_TENTH.format("30.5"),
    "uptime": "100.0 + x",
    "uptime_seconds": f"{INTERVAL_SECONDS}.0 * {_SAMPLE_OF_MODEL}",
    "active_models": "1",
    "extra": "NULL",
    "event": "'loaded'",
    "state": "'loaded'",
    "previous_state": "'loading'",
    "server": "'127.0.0.1:8080'",
    "run_id": f"x / {_SAMPLES_PER_MODEL} + 1",
    "counted_from_zero": f"{_SAMPLE_OF_MODEL} = 0",
    "model_path": "NULL",
}
"""SQL of the columns for which not any number will do; `x` is the number of the sample."""


def _expression(name: str, first: int) -> str:
    if name == "timestamp":
        return f"{first} + x * {INTERVAL_SECONDS}"
    default = f"{_SAMPLE_OF_MODEL} * 1.5" if name.endswith("_total") else "x % 997 / 9.97"
    return _EXPRESSIONS.get(name, default)


def _insert(table: Table, first: int, where: str = "") -> str:
    values = ", ".join(_expression(name, first) for name in table.written_columns)
    return (
        "WITH RECURSIVE n(x) AS (SELECT ?1 UNION ALL SELECT x + 1 FROM n WHERE x < ?2 - 1) "
        f"INSERT INTO {table.name} ({', '.join(table.written_columns)}) SELECT {values} FROM n {where}"
    )


def fill(path: Path, samples: int) -> int:
    """Create the database, whose newest sample is of now.

    Returns:
        Unix seconds of the oldest sample.
    """
    Database(path, OWN_TABLES, VIEWS).close()
    first = int(time.time()) - samples * INTERVAL_SECONDS
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(_FAST)
        for number in range(MODELS_COUNT):
            row = MODELS.row({"id": f"model-{number}", "name": f"model-{number}", "created_at": first})
            connection.execute(MODELS.insert_statement, row)
        for bounds in _bounds(samples):
            connection.execute("BEGIN")
            for table in TABLES:
                connection.execute(_insert(table, first), bounds)
            connection.execute(_insert(MODEL_EVENTS, first, f"WHERE {_SAMPLE_OF_MODEL} = 0"), bounds)
            connection.execute("COMMIT")
        connection.executescript("PRAGMA analysis_limit = 400; ANALYZE")
    sync_to_disk(path)  # otherwise the first commit waits for all of it
    return first


def _bounds(samples: int) -> Iterator[tuple[int, int]]:
    for start in range(0, samples, _SAMPLES_PER_TRANSACTION):
        yield start, min(start + _SAMPLES_PER_TRANSACTION, samples)
