"""The upgrade of rows of version 0.1.0: after it, the views return what those of version 0.1.0 returned before."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from collector.catalog import OWN_TABLES, VIEWS
from collector.database import Database
from collector.parsers.server_answers import ServedModel
from collector.sources.llama.local.process import LlamaProcess
from collector.sources.llama.run_table import is_restarted
from collector.sources.llama.runs import ObservedProcess, ServerRuns
from collector.sources.upgrade import RowUpgrade
from tests.support.version_010 import SERVER, create, is_upgraded, upgrade_rows

TOKENS = "SELECT timestamp, model, generated_tokens, prompt_tokens, generation_seconds FROM token_steps ORDER BY model, timestamp"
BY_HOUR = (
    "SELECT timestamp, model, generated_tokens, prompt_tokens FROM tokens_by_hour ORDER BY model, timestamp"
)
GPUS = "SELECT timestamp, gpus, energy_joules FROM gpu_by_hour ORDER BY timestamp"
LOADS = "SELECT timestamp, model, came_by, left_at, left_by FROM model_loads ORDER BY model, timestamp"


def view_rows(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Return the rows of the views that are stored in a database."""
    with closing(sqlite3.connect(path)) as connection:
        return {
            question: connection.execute(question).fetchall() for question in (TOKENS, BY_HOUR, GPUS, LOADS)
        }


@pytest.mark.parametrize("seed", range(4))
def test_every_view_returns_the_rows_that_version_0_1_0_returned(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "old.db"
    create(path, 3000, seed)
    before = view_rows(path)
    assert len(before[BY_HOUR]) > 10
    with Database(path, OWN_TABLES, VIEWS) as database:
        upgrade_rows(database)
        assert is_upgraded(database)
        assert database.query("SELECT 1 FROM llama_metrics WHERE run_id IS NULL LIMIT 1") == []
        assert database.query("SELECT 1 FROM model_events WHERE server IS NULL LIMIT 1") == []
    after = view_rows(path)
    for question, rows in before.items():
        assert after[question] == rows, question


def test_every_row_refers_to_a_run_of_its_model(tmp_path: Path) -> None:
    create(tmp_path / "old.db", 2000)
    with Database(tmp_path / "old.db", OWN_TABLES, VIEWS) as database:
        upgrade_rows(database)
        wrong = database.query(
            "SELECT * FROM llama_metrics AS row LEFT JOIN server_runs AS run ON run.id = row.run_id "
            "WHERE run.model IS NOT row.model OR run.server IS NOT row.server"
        )
        assert wrong == []
        open_runs = database.query("SELECT model FROM server_runs WHERE outcome IS NULL ORDER BY model")
        assert [row["model"] for row in open_runs] == ["chat", "code", "embed"]


def test_an_upgrade_that_is_stopped_at_any_step_and_continued_has_the_same_result(tmp_path: Path) -> None:
    class StopAfter(threading.Event):
        """An event that is set after a number of waits."""

        def __init__(self, steps: int) -> None:
            super().__init__()
            self._left = steps

        def wait(self, _timeout: float | None = None) -> bool:
            self._left -= 1
            return self._left < 0

    create(tmp_path / "old.db", 1500, seed=7)
    before = view_rows(tmp_path / "old.db")
    chance, rounds = random.Random(1), 0
    upgraded = False
    while not upgraded:
        with Database(tmp_path / "old.db", OWN_TABLES, VIEWS) as database:
            upgrade_rows(database, StopAfter(chance.randint(0, 2)))
            upgraded = is_upgraded(database)
        rounds += 1
    assert rounds > 2
    assert view_rows(tmp_path / "old.db") == before


def observed_after(old: dict[str, Any], tokens: float, process: LlamaProcess) -> ObservedProcess:
    """Return a sample five seconds after a row of version 0.1.0, with counters that grew."""
    counters = (old["tokens_predicted_total"] + tokens, None, None)
    return ObservedProcess(
        old["timestamp"] + 5, SERVER, SERVER, ServedModel("chat", None, "loaded"), None, process,
        counters=counters,
    )  # fmt: skip


def process_of(old: dict[str, Any], clock_step: float = 0.4) -> LlamaProcess:
    """Return the process of a row of version 0.1.0, five seconds later."""
    started_at = old["timestamp"] - old["uptime_seconds"] + clock_step
    uptime = old["uptime_seconds"] + 5
    return LlamaProcess(
        7, started_at, None, 0, 0, (), uptime_seconds=uptime, started_boot_seconds=1.0, boot_id="b"
    )


def newest_row(database: Database) -> dict[str, Any]:
    return database.query("SELECT * FROM llama_metrics WHERE model = 'chat' ORDER BY id DESC LIMIT 1")[0]


def test_a_process_that_still_runs_continues_the_run_of_its_old_rows(tmp_path: Path) -> None:
    create(tmp_path / "old.db", 200, seed=3)
    with Database(tmp_path / "old.db", OWN_TABLES, VIEWS) as database:
        old = newest_row(database)
        runs = ServerRuns(database.query)  # one for the upgrade and the samples, as in the daemon
        RowUpgrade(database, runs, SERVER, threading.Event()).begin()
        assignment = runs.assign(observed_after(old, 3, process_of(old)))
        row = newest_row(database)
        assert (assignment.run_id, assignment.counted_from_zero) == (row["run_id"], False)


@pytest.mark.parametrize("clock_step", [-86_400, -10, 10, 3600, 86_400])
def test_setting_the_clock_during_the_upgrade_ends_no_run(tmp_path: Path, clock_step: int) -> None:
    create(tmp_path / "old.db", 200, seed=3)
    with Database(tmp_path / "old.db", OWN_TABLES, VIEWS) as database:
        old = newest_row(database)
        runs = ServerRuns(database.query)
        RowUpgrade(database, runs, SERVER, threading.Event()).begin()
        seen = observed_after(old, 3, process_of(old, clock_step))
        assignment = runs.assign(replace(seen, timestamp=seen.timestamp + clock_step))
        row = newest_row(database)
        assert (assignment.run_id, assignment.counted_from_zero) == (row["run_id"], False)


def test_ids_of_runs_ascend_in_time_although_the_upgrade_creates_the_newest_run_first(tmp_path: Path) -> None:
    """The next collector must find the run that continues: it is the one with the highest id."""
    create(tmp_path / "old.db", 3000, seed=3)
    with Database(tmp_path / "old.db", OWN_TABLES, VIEWS) as database:
        old = newest_row(database)
        upgrade_rows(database)
        assert len(database.query("SELECT 1 FROM server_runs WHERE model = 'chat'")) > 1
        assignment = ServerRuns(database.query).assign(observed_after(old, 3, process_of(old)))
        row = newest_row(database)
        assert (assignment.run_id, assignment.counted_from_zero) == (row["run_id"], False)
        first_rows = database.query(
            "SELECT min(id) AS id FROM llama_metrics WHERE model = 'chat' GROUP BY run_id ORDER BY run_id"
        )
        assert first_rows == sorted(first_rows, key=lambda first: first["id"])


def test_a_row_without_a_run_that_this_version_wrote_is_not_upgraded(tmp_path: Path) -> None:
    """It writes such rows if the database is locked in the first sample, or after the database was replaced."""
    with Database(tmp_path / "new.db", OWN_TABLES, VIEWS) as database:
        with database.transaction() as connection:
            connection.execute(
                "INSERT INTO llama_metrics (timestamp, model, server, tokens_predicted_total) "
                "VALUES (1, 'chat', ?, 5)",
                (SERVER,),
            )
        upgrade_rows(database)
        assert database.query("SELECT * FROM server_runs") == []


def test_a_process_that_started_after_the_old_rows_begins_another_run(tmp_path: Path) -> None:
    create(tmp_path / "old.db", 200, seed=3)
    with Database(tmp_path / "old.db", OWN_TABLES, VIEWS) as database:
        (old,) = database.query("SELECT * FROM llama_metrics WHERE model = 'chat' ORDER BY id DESC LIMIT 1")
        RowUpgrade(database, ServerRuns(database.query), SERVER, threading.Event()).begin()
        process = LlamaProcess(
            7, old["timestamp"] + 100.0, None, 0, 0, (), started_boot_seconds=1.0, boot_id="b"
        )
        seen = ObservedProcess(
            old["timestamp"] + 500, SERVER, SERVER, ServedModel("chat", None, "loaded"), None, process,
            counters=(9e9, None, None),
        )  # fmt: skip
        assert ServerRuns(database.query).assign(seen).counted_from_zero


def test_rows_that_version_0_1_0_wrote_after_this_version_are_upgraded_as_well(tmp_path: Path) -> None:
    create(tmp_path / "old.db", 300, seed=2)
    with Database(tmp_path / "old.db", OWN_TABLES, VIEWS) as database:
        upgrade_rows(database)
        count = database.query("SELECT count(*) AS n FROM server_runs")[0]["n"]
        with database.transaction() as connection:
            for second in (0, 5, 10):
                connection.execute(
                    "INSERT INTO llama_metrics (timestamp, model, tokens_predicted_total) VALUES (?, 'x', ?)",
                    (2_000_000_000 + second, 100 + second),
                )
        upgrade_rows(database)
        rows = database.query("SELECT run_id, counted_from_zero FROM llama_metrics WHERE model = 'x'")
        assert len({row["run_id"] for row in rows}) == 1
        assert database.query("SELECT count(*) AS n FROM server_runs")[0]["n"] == count + 1


def test_a_process_that_this_version_counted_does_not_count_again_in_later_rows_of_version_0_1_0(
    tmp_path: Path,
) -> None:
    create(tmp_path / "old.db", 300, seed=2)
    with Database(tmp_path / "old.db", OWN_TABLES, VIEWS) as database:
        upgrade_rows(database)
        latest = database.query("SELECT max(timestamp) AS t FROM llama_metrics")[0]["t"]
        with database.transaction() as connection:
            for second, uptime in ((100, 200.0), (105, 205.0)):  # it started 100 s before the latest row
                connection.execute(
                    "INSERT INTO llama_metrics (timestamp, model, tokens_predicted_total, uptime_seconds) "
                    "VALUES (?, 'x', ?, ?)",
                    (latest + second, 100 + second, uptime),
                )
        upgrade_rows(database)
        (counted,) = database.query("SELECT sum(generated_tokens) AS n FROM token_steps WHERE model = 'x'")
        assert counted["n"] == 5


def test_a_database_that_was_overwritten_is_not_upgraded_with_the_progress_of_the_old_one(
    tmp_path: Path,
) -> None:
    class Overwriting(threading.Event):
        """Overwrites the database with another one during the first pause."""

        is_done = False

        def wait(self, _timeout: float | None = None) -> bool:
            if not self.is_done:
                shutil.copy(tmp_path / "backup.db", tmp_path / "old.db")
            self.is_done = True
            return False

    create(tmp_path / "old.db", 3000, seed=2)
    shutil.copy(tmp_path / "old.db", tmp_path / "backup.db")
    with Database(tmp_path / "backup.db", OWN_TABLES, VIEWS):
        pass
    with Database(tmp_path / "old.db", OWN_TABLES, VIEWS) as database:
        upgrade_rows(database, Overwriting())
    for name in ("old.db", "backup.db"):
        with closing(sqlite3.connect(tmp_path / name)) as reader:
            assert reader.execute("SELECT count(*) FROM metadata").fetchone() == (0,)
            assert reader.execute("SELECT count(*) FROM server_runs").fetchone() == (0,)
            assert reader.execute("SELECT count(*) FROM llama_metrics WHERE run_id NOT NULL").fetchone() == (
                0,
            )


def test_a_database_without_old_rows_is_not_changed(tmp_path: Path) -> None:
    with Database(tmp_path / "new.db", OWN_TABLES, VIEWS) as database:
        upgrade_rows(database)
        assert database.query("SELECT * FROM metadata") == []
        assert database.query("SELECT * FROM server_runs") == []


def row(
    timestamp: float, uptime: float | None, tokens: float | None = 100.0, decodes: float | None = None
) -> dict[str, Any]:
    return {
        "timestamp": timestamp, "uptime_seconds": uptime, "tokens_predicted_total": tokens,
        "prompt_tokens_total": None, "n_decode_total": decodes,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("earlier", "later", "restarted"),
    [
        (row(0, 100), row(5, 105), False),
        (row(0, 100), row(5, 3), True),
        (row(0, 900), row(3600, 3500), True),  # each ran for a long time, with a pause between the rows
        (row(0, 900), row(3600, 4500), False),
        (row(0, 9000), row(8, 9005), False),  # the clock was set forward by 3 s
        (row(0, 9000), row(86_405, 9005), False),  # forward by a day
        (row(0, 9000), row(-3595, 9005), False),  # back by an hour
        (row(0, 0.5), row(1, 0.7, 40), True),  # a restart within a second: the counter fell
        (row(0, 0.0), row(1, 0.2, 140), False),
        (row(0, None), row(5, None, 90), True),
        (row(0, None), row(5, None, 110), False),
        (row(0, None, 100, 500), row(5, None, 150, 30), True),
        (row(0, None, None), row(5, None, 150), False),
    ],
)
def test_a_restart_between_two_rows_is_detected_from_uptimes_and_counters(
    earlier: dict[str, Any], later: dict[str, Any], *, restarted: bool
) -> None:
    assert is_restarted(earlier, later) == restarted


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_million_rows_are_upgraded_although_the_upgrade_is_killed_many_times(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    create(path, 165_000)  # 3 models, 2 GPUs, 2 rows a sample: a million rows
    with closing(sqlite3.connect(path)) as connection:
        tables = ("metrics", "host_metrics", "llama_metrics", "gpu_metrics")
        assert (
            sum(connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables)
            > 1_000_000
        )
        before = connection.execute(BY_HOUR).fetchall(), connection.execute(GPUS).fetchall()
    script = (
        "import sys, pathlib; from collector.catalog import open_database; "
        "from tests.support.version_010 import upgrade_rows, is_upgraded; "
        "database = open_database(pathlib.Path(sys.argv[1])); upgrade_rows(database); print(is_upgraded(database))"
    )
    chance, kills = random.Random(5), 0
    while kills < 20:
        process = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE)
        time.sleep(chance.uniform(0.4, 2.5))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.communicate()
        if process.returncode == 0:
            break
    subprocess.run([sys.executable, "-c", script, str(path)], check=True)
    assert kills > 3
    with closing(sqlite3.connect(path)) as connection:
        after = connection.execute(BY_HOUR).fetchall(), connection.execute(GPUS).fetchall()
    assert after == before
