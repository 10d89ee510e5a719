"""The whole daemon under load is killed at random moments, and started again each time.

The full form, which prints what it counted: `python -m tests.faults.test_kills 500`
"""

import json
import os
import random
import shutil
import signal
import sqlite3
import statistics
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.collector import WAIT_SECONDS, Collector
from tests.support.gguf_files import write_model
from tests.support.log_flood import LogFlood, message

KILLS = 40
LONGEST_BEFORE_READ, LONGEST_AFTER_READ = 1.5, 2.5  # seconds
FLUSH_SECONDS = SAMPLE_SECONDS = 1
KEPT_SAMPLES, OLD_SAMPLES, KEPT_BACKUPS, MODELS = 4000, 3000, 3, 5
HANG_SECONDS = 30
JOBS = ("prune", "scan", "backup", "backup_test")

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
files = ["{directory}/llama.log"]
[retention]
metrics_max_rows = 4000
logs_max_rows = 0
interval = 60
[backup]
schedule = "* * * * *"
keep = 3
self_test_days = 1
"""

RECOGNISED_BY = {"metrics": "timestamp", "host_metrics": "cpu_usage", "logs": "message"}
"""For each table a column by which a row is recognised."""


@dataclass
class Figures:
    """The effects of the kills.

    Args:
        kills: number of kills.
        journals: kills in the middle of a change, which the next start rolled back.
        partial_backups: kills in the middle of a backup or of its trial restore.
        seconds_missing: from the newest committed sample to each kill.
        rows_noted: rows that a reader found before a kill.
        lines: lines of the log.
        samples: samples in the end.
        samples_pruned: samples that were inserted as old ones and pruned.
    """

    kills: int = 0
    journals: int = 0
    partial_backups: int = 0
    seconds_missing: list[float] = field(default_factory=list)
    rows_noted: int = 0
    lines: int = 0
    samples: int = 0
    samples_pruned: int = 0

    def __str__(self) -> str:
        missing = sorted(self.seconds_missing)
        return (
            f"{self.kills} kills: {self.journals} left a journal, {self.partial_backups} part of a backup; "
            f"{self.rows_noted} committed rows noted, {self.lines} lines of log, {self.samples} samples, "
            f"{self.samples_pruned} old samples pruned; newest committed sample before the kill: median "
            f"{statistics.median(missing):.2f} s, 99 % {missing[len(missing) * 99 // 100]:.2f} s, "
            f"longest {missing[-1]:.2f} s"
        )


class KilledCollector:
    """A collector with all its jobs running, killed again and again.

    Args:
        directory: an empty directory.
        seed: seed of the random moments.
    """

    def __init__(self, directory: Path, seed: int) -> None:
        self._copies, self._models, self._log = (directory / n for n in ("copy", "models", "llama.log"))
        self._models.mkdir()
        for number in range(MODELS):
            write_model(self._models / f"model-{number}.gguf")
        self._log.touch()
        self._collector = Collector(directory, SETTINGS.format(directory=directory))
        self._chance = random.Random(seed)
        self._begun = int(time.time())
        self._runs: list[tuple[float, float]] = []
        self._ends: set[int] = set()
        self._noted: dict[str, dict[int, object]] = {table: {} for table in RECOGNISED_BY}
        self.figures = Figures()

    def run(self, kills: int) -> Figures:
        """Kill it this many times, then stop it cleanly and check every promise."""
        with self._collector:
            self._collector.wait_for("SELECT * FROM metrics")
            self._stop_cleanly()
        with LogFlood(self._log) as flood:
            for _ in range(kills):
                self._run_and_kill()
        self.figures.lines = flood.lines
        self._finish()
        self._check_rows()
        self._check_files()
        return self.figures

    def _run_and_kill(self) -> None:
        started = time.time()
        with self._collector as collector:
            time.sleep(self._chance.uniform(0, LONGEST_BEFORE_READ))
            if self._chance.random() < 0.8:  # the others are killed early
                self._note_committed()
                self._create_work()
                time.sleep(self._chance.uniform(0, LONGEST_AFTER_READ))
            killed = time.time()
            assert collector.stop(signal.SIGKILL) == -signal.SIGKILL, collector.output
        self._runs.append((started, killed))
        self._ends.add(int(killed))
        self.figures.kills += 1
        self._check_remains()

    def _note_committed(self) -> None:
        for table, column in RECOGNISED_BY.items():
            newest = max(self._noted[table], default=0)
            rows = self._read(
                f"SELECT id, {column} AS noted FROM {table} WHERE id > {newest} AND timestamp >= {self._begun}"
            )
            self._noted[table] |= {row["id"]: row["noted"] for row in rows}

    def _read(self, statement: str) -> list[dict[str, Any]]:
        """Query; after a kill in the middle of a change a reader has to wait until the next start rolls it back."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                return self._collector.query(statement)
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def _create_work(self) -> None:
        """Write as another program may: old samples to be pruned, a backup that is due, a model that has changed."""
        with closing(sqlite3.connect(self._collector.database, timeout=WAIT_SECONDS)) as other, other:
            other.execute(
                "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < ?)"
                "INSERT INTO metrics (timestamp) SELECT x FROM n",
                (OLD_SAMPLES,),
            )
            other.execute(
                "UPDATE metadata SET value = '{\"time\": 0}' WHERE key = 'lastBackup'"
            )  # as 0.1.0 did
            other.execute("UPDATE metadata SET value = '0' WHERE key = 'backupsAwaitedSince'")
            other.execute("DELETE FROM metadata WHERE key = 'lastBackupTest'")
        self.figures.samples_pruned += OLD_SAMPLES
        os.utime(self._chance.choice(sorted(self._models.iterdir())))

    def _check_remains(self) -> None:
        """Check a copy: the original is left for the collector's own next start."""
        shutil.rmtree(self._copies, ignore_errors=True)
        self._copies.mkdir()
        database = self._collector.database
        for path in database.parent.glob(f"{database.name}*"):
            shutil.copy(path, self._copies)
        self.figures.journals += Path(f"{database}-journal").exists()
        self.figures.partial_backups += any((database.parent / "backup").glob(".*"))
        require_integrity(self._copies / database.name)

    def _finish(self) -> None:
        """Run it once more until all jobs are done; the last kill may have left a journal too."""
        started = int(time.time())
        with self._collector as collector:
            self._read("SELECT * FROM metadata")
            for job in JOBS:
                collector.wait_for(
                    f"SELECT * FROM collector_health WHERE name = '{job}' AND last_success >= {started}"
                )
            last = message(self.figures.lines - 1)
            collector.wait_for(f"SELECT * FROM logs WHERE id > {self._newest_line()} AND message = '{last}'")
            self._stop_cleanly()

    def _newest_line(self) -> int:
        return max(self._noted["logs"], default=0)

    def _stop_cleanly(self) -> None:
        assert self._collector.stop() == 0, self._collector.output
        self._ends.add(int(time.time()))

    def _check_rows(self) -> None:
        database = self._collector.database
        require_integrity(database)
        with closing(sqlite3.connect(database)) as reader:
            for table, column in RECOGNISED_BY.items():
                stored = dict(reader.execute(f"SELECT id, {column} FROM {table}").fetchall())
                lost = {
                    number: noted
                    for number, noted in self._noted[table].items()
                    if stored.get(number) != noted
                }
                assert not lost, f"{len(lost)} rows of {table}: {dict(list(lost.items())[:5])}"
            lines = Counter(
                m for (m,) in reader.execute("SELECT message FROM logs WHERE source = 'llama-server'")
            )
            samples = [
                second
                for (second,) in reader.execute(
                    "SELECT timestamp FROM metrics WHERE timestamp >= ? ORDER BY timestamp", (self._begun,)
                )
            ]
            paths = [path for (path,) in reader.execute("SELECT model_path FROM models")]
            (old,) = reader.execute(
                "SELECT count(*) FROM metrics WHERE timestamp <= ?", (OLD_SAMPLES,)
            ).fetchone()
        written = Counter(message(number) for number in range(self.figures.lines))
        surplus, missing = lines - written, written - lines
        assert not surplus, f"{len(surplus)} lines more often than written: {list(surplus)[:5]}"
        assert not missing, f"{len(missing)} lines missing: {list(missing)[:5]}"
        assert len(paths) == len(set(paths)) == MODELS
        doubled = {second for second, rows in Counter(samples).items() if rows > 1}
        assert doubled <= self._ends, "a run stopped and the next one started within the same second"
        self.figures.rows_noted = sum(map(len, self._noted.values()))
        self.figures.samples = len(samples)
        self.figures.samples_pruned -= old
        self._count_missing(samples)

    def _count_missing(self, samples: list[int]) -> None:
        for started, killed in self._runs:
            own = [second for second in samples if started <= second <= killed]
            if own:
                self.figures.seconds_missing.append(killed - own[-1])

    def _check_files(self) -> None:
        directory = self._collector.database.parent
        backups = sorted((directory / "backup").iterdir())
        assert 0 < len(backups) <= KEPT_BACKUPS, backups
        for backup in backups:
            require_integrity(backup)
        names = {path.name for path in directory.iterdir()}
        assert names == {"llama-dashboard.db", "llama-dashboard.db.lock", "backup"}, names
        with closing(sqlite3.connect(self._collector.database)) as reader:
            (last,) = reader.execute("SELECT value FROM metadata WHERE key = 'lastBackup'").fetchone()
        assert json.loads(last)["file"] == str(backups[-1])


def require_integrity(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_whenever_the_daemon_is_killed_no_row_and_no_line_is_lost_or_doubled_and_no_file_is_left_behind(
    tmp_path: Path,
) -> None:
    figures = KilledCollector(tmp_path, seed=KILLS).run(KILLS)
    print(figures)
    # The sample of the last second may wait for the flush of the next one. A busy machine delays some, but
    # not half of them.
    assert statistics.median(figures.seconds_missing) <= SAMPLE_SECONDS + FLUSH_SECONDS
    assert max(figures.seconds_missing) < HANG_SECONDS
    assert len(figures.seconds_missing) > KILLS / 4
    assert figures.samples_pruned > 0


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        print(KilledCollector(Path(scratch), seed=int(time.time())).run(int(sys.argv[1])))
