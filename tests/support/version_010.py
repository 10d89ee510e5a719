"""Databases that are written as version 0.1.0 wrote them."""

import random
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from collector.database import Database
from collector.sources.llama.runs import ServerRuns
from collector.sources.upgrade import STATE_KEY, RowUpgrade
from tests.support.paths import RECORDINGS

SERVER = "127.0.0.1:8080"
SCHEMA = (RECORDINGS / "version-0.1.0.sql").read_text()
FIRST_TIME = 1_781_265_600
INTERVAL_SECONDS = 5
_MODELS = ("chat", "code", "embed")
_METRICS = (
    "INSERT INTO llama_metrics (timestamp, model, tokens_predicted_total, tokens_predicted_seconds_total, "
    "prompt_tokens_total, prompt_seconds_total, n_decode_total, uptime_seconds) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
_GPUS = (
    "INSERT INTO gpu_metrics (timestamp, gpu_index, uuid, power_watts, energy_joules) VALUES (?, ?, ?, ?, ?)"
)
_HOST = "INSERT INTO host_metrics (timestamp, cpu_usage) VALUES (?, ?)"
_SAMPLES = "INSERT INTO metrics (timestamp, active_models, uptime) VALUES (?, ?, ?)"
_EVENTS = "INSERT INTO model_events (timestamp, model, event, state) VALUES (?, ?, ?, ?)"


def upgrade_rows(database: Database, stop: threading.Event | None = None) -> None:
    """Upgrade the rows of version 0.1.0 in a database, as the daemon does."""
    runs = ServerRuns(database.query)
    if not database.query("SELECT 1 FROM collector_runs"):
        oldest = database.query("SELECT min(timestamp) AS t FROM metrics")[0]["t"]
        if oldest is not None:  # the daemon writes this row at its first start on a database of version 0.1.0
            with database.transaction() as connection:
                connection.execute(
                    "INSERT INTO collector_runs (version, started_at) VALUES ('0.1.0', ?)", (oldest,)
                )
    upgrade = RowUpgrade(database, runs, SERVER, stop or threading.Event())
    upgrade.begin()
    upgrade.run()


def is_upgraded(database: Database) -> bool:
    return database.meta.get(STATE_KEY) is None


def create(path: Path, samples: int, seed: int = 0) -> None:
    """Write a database of version 0.1.0 with restarts, unloads, gaps and two GPUs.

    Args:
        path: path of the new file.
        samples: number of samples; each has one row per loaded model, two of GPUs and one of each other table.
        seed: seed of the random events.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript("PRAGMA auto_vacuum = INCREMENTAL; PRAGMA synchronous = OFF;" + SCHEMA)
        connection.execute("BEGIN")
        for statement, row in _rows(samples, random.Random(seed)):
            connection.execute(statement, row)
        connection.execute("COMMIT")


def _rows(samples: int, chance: random.Random) -> Iterator[tuple[str, tuple[object, ...]]]:
    clock, energy = FIRST_TIME, [1000.0, 2000.0]
    started: dict[str, float] = dict.fromkeys(_MODELS, clock - 500.0)
    tokens = dict.fromkeys(_MODELS, 100)
    for _ in range(samples):
        clock += INTERVAL_SECONDS if chance.random() > 0.0005 else chance.choice((600, 7200))
        yield _HOST, (clock, 10.0)
        yield _SAMPLES, (clock, len(started), 10.0)
        for model in _MODELS:
            if chance.random() < 0.001:  # unloaded, or its process replaced
                if started.pop(model, None) is None or chance.random() < 0.5:
                    started[model], tokens[model] = clock - chance.random() * 4, 0
                    yield _EVENTS, (clock, model, "loaded", "loaded")
                else:
                    yield _EVENTS, (clock, model, "unloaded", "unloaded")
            if model in started:
                tokens[model] += chance.choice((0, 0, 0, 120))
                n = tokens[model]
                yield _METRICS, (clock, model, n, n / 50, n * 2, n / 500, n, clock - started[model])
        for number in (0, 1):
            energy[number] = 0.0 if chance.random() < 0.0002 else energy[number] + 500.0
            yield _GPUS, (clock, number, f"GPU-{number}", 100.0, energy[number])
