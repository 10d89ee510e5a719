"""SIGTERM at random moments, with every job running: the collector ends in order, within two seconds.

The full form, which prints what it measured: `python -m tests.faults.test_stop 300`
"""

import random
import signal
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.support.collector import WAIT_SECONDS, Collector
from tests.support.gguf_files import write_model
from tests.support.log_flood import LogFlood

STOPS = 30
LONGEST_SECONDS = 2.0
OLD_SAMPLES, OLD_LINES, MODELS = 200_000, 300_000, 5

SETTINGS = """[database]
path = "{directory}/data/llama-dashboard.db"
flush_interval = 1
[sampling]
interval = 1
[llama_server]
url = ""
[gpu]
enabled = false
[models]
directory = "{directory}/models"
rescan_interval = 10
[logs]
files = ["{directory}/*.log"]
[retention]
metrics_max_rows = 100000
logs_max_rows = 0
interval = 60
[backup]
schedule = "* * * * *"
keep = 2
self_test_days = 1
"""


def stop_again_and_again(directory: Path, stops: int, seed: int) -> list[float]:
    """Start a collector with every job to do, stop it at a random moment, and so on.

    Returns:
        seconds from each SIGTERM to the end of the process.
    """
    chance = random.Random(seed)
    (directory / "models").mkdir()
    for number in range(MODELS):
        write_model(directory / "models" / f"model-{number}.gguf")
    log = directory / "llama.log"
    log.touch()
    collector = Collector(directory, SETTINGS.format(directory=directory))
    with collector:
        collector.wait_for("SELECT * FROM metrics")
        assert collector.stop() == 0
    fill(collector)
    seconds = []
    with LogFlood(log):
        for number in range(stops):
            make_jobs_due(collector)
            with collector:
                collector.wait_for(f"SELECT 1 FROM collector_runs WHERE id > {number + 1}")
                time.sleep(chance.uniform(0, 3))
                with locked(collector) if chance.random() < 0.25 else nothing():
                    started = time.monotonic()
                    code = collector.stop(signal.SIGTERM)
                    seconds.append(time.monotonic() - started)
            assert code == 0, collector.output
            assert "Traceback" not in collector.output
            assert "failed" not in collector.output
    with closing(sqlite3.connect(collector.database)) as reader:
        assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    return seconds


def fill(collector: Collector) -> None:
    """Insert rows, so that counting, pruning, copying and checking take seconds."""
    numbers = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < ?)"
    with closing(sqlite3.connect(collector.database, timeout=WAIT_SECONDS)) as other, other:
        other.execute(f"{numbers} INSERT INTO metrics (timestamp) SELECT x FROM n", (OLD_SAMPLES,))
        other.execute(
            f"{numbers} INSERT INTO logs (level, message, source, timestamp) "
            "SELECT 'info', 'an old line of the server, number ' || x, 'old', x FROM n",
            (OLD_LINES,),
        )


def make_jobs_due(collector: Collector) -> None:
    """Let the backup and its trial restore be due, and give the prune something to delete."""
    with closing(sqlite3.connect(collector.database, timeout=WAIT_SECONDS)) as other, other:
        other.execute("DELETE FROM metadata WHERE key IN ('lastBackup', 'lastBackupTest')")
        other.execute("UPDATE metadata SET value = '0' WHERE key = 'backupsAwaitedSince'")
        other.execute("INSERT INTO metrics (timestamp) SELECT timestamp FROM metrics LIMIT 20000")


@contextmanager
def locked(collector: Collector) -> Iterator[None]:
    """Hold a lock that keeps the collector from writing for a second, as a slow reader does."""
    with closing(sqlite3.connect(collector.database, timeout=WAIT_SECONDS, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM metadata").fetchone()
        yield


@contextmanager
def nothing() -> Iterator[None]:
    yield


@pytest.mark.slow
@pytest.mark.quiet
@pytest.mark.timeout(600)
def test_the_collector_ends_within_two_seconds_whenever_it_is_stopped(tmp_path: Path) -> None:
    seconds = stop_again_and_again(tmp_path, STOPS, seed=STOPS)
    assert max(seconds) < LONGEST_SECONDS, sorted(seconds)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        measured = sorted(stop_again_and_again(Path(scratch), int(sys.argv[1]), int(time.time())))
        print(
            f"{len(measured)} stops: median {statistics.median(measured):.2f} s, longest {measured[-1]:.2f} s"
        )
