"""The table `collector_runs`: how each run started and stopped, and whether the file was checked."""

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Any

import pytest

import collector as package
from collector.catalog import OWN_TABLES
from collector.daemon.run_record import RunRecord
from collector.database import Database, integrity_check
from collector.database.buffer import Buffer
from collector.database.integrity_check import IntegrityCheck
from collector.database.writer import Writer
from collector.errors import DatabaseDamaged
from tests.support.collector import Collector
from tests.support.damage import damage
from tests.support.impatient import ImpatientCollector
from tests.support.lock_holder import WRITER, LockHolder

SETTINGS = '[sampling]\ninterval = 1\n[llama_server]\nurl = ""\n[gpu]\nenabled = false\n[models]\nrescan_interval = 0\n'
EVERY_FILE_IS_LARGE = {"collector.database.integrity_check.QUICK_CHECK_MAX_BYTES": 0}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(tmp_path / "runs.db", OWN_TABLES) as opened:
        yield opened


@pytest.fixture
def _every_file_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integrity_check, "QUICK_CHECK_MAX_BYTES", 0)


def runs(database: Database) -> list[dict[str, Any]]:
    return database.query("SELECT * FROM collector_runs ORDER BY id")


def stop(database: Database, run: RunRecord, buffer: Buffer) -> None:
    run.add_stop()
    Writer(database, buffer).flush()


def insert_samples(database: Database, *seconds: int) -> None:
    with database.transaction() as connection:
        connection.executemany("INSERT INTO host_metrics (timestamp) VALUES (?)", [(s,) for s in seconds])


def test_a_run_is_recorded_before_it_samples(database: Database) -> None:
    before = int(time.time())
    RunRecord(database, Buffer())
    (row,) = runs(database)
    assert before <= row["started_at"] <= time.time()
    assert row["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert 0 < row["started_boot_seconds"] <= time.clock_gettime(time.CLOCK_BOOTTIME)
    assert (row["version"], row["process_id"]) == (package.__version__, os.getpid())
    assert (row["stopped_at"], row["stopped_cleanly"]) == (None, None)


@pytest.mark.usefixtures("_every_file_is_large")
class TestCheckOfTheFile:
    def test_no_check_is_due_in_a_new_database(self, database: Database) -> None:
        assert not RunRecord(database, Buffer()).is_check_due
        assert runs(database)[0]["integrity"] is None

    def test_no_check_is_due_after_a_clean_stop(self, database: Database) -> None:
        buffer = Buffer()
        stop(database, RunRecord(database, buffer), buffer)
        assert not RunRecord(database, Buffer()).is_check_due
        first, second = runs(database)
        assert first["stopped_cleanly"] == 1
        assert first["stopped_at"] >= first["started_at"]
        assert (second["integrity"], second["integrity_checked_at"]) == (None, None)

    def test_a_check_is_due_after_a_run_that_did_not_stop(self, database: Database) -> None:
        RunRecord(database, Buffer())
        assert RunRecord(database, Buffer()).is_check_due
        assert runs(database)[1]["integrity"] == "due"

    def test_a_check_is_due_after_a_stop_that_lost_rows(self, database: Database) -> None:
        RunRecord(database, Buffer()).record_lost_rows()
        assert runs(database)[0]["stopped_cleanly"] == 0
        assert RunRecord(database, Buffer()).is_check_due

    def test_a_check_that_was_not_done_is_due_again_after_a_clean_stop(self, database: Database) -> None:
        RunRecord(database, Buffer())
        buffer = Buffer()
        stop(database, RunRecord(database, buffer), buffer)
        assert RunRecord(database, Buffer()).is_check_due

    @pytest.mark.parametrize(("result", "is_due"), [("ok", False), ("damaged", True)])
    def test_the_result_decides_whether_it_is_due_again(
        self, database: Database, result: str, *, is_due: bool
    ) -> None:
        RunRecord(database, Buffer())
        buffer = Buffer()
        run = RunRecord(database, buffer)
        run.add_integrity(result)
        stop(database, run, buffer)
        row = runs(database)[1]
        assert (row["integrity"], row["stopped_cleanly"]) == (result, 1)
        assert row["integrity_checked_at"] >= row["started_at"]
        assert RunRecord(database, Buffer()).is_check_due is is_due

    def test_samples_without_a_run_are_those_of_0_1_0_which_may_have_been_killed(
        self, database: Database
    ) -> None:
        insert_samples(database, 1007, 1005, 1006)
        assert RunRecord(database, Buffer()).is_check_due
        first, second = runs(database)
        assert (first["id"], first["version"], first["started_at"]) == (1, "0.1.0", 1005)
        assert {value for name, value in first.items() if name not in ("id", "version", "started_at")} == {
            None
        }
        assert (second["id"], second["process_id"]) == (2, os.getpid())
        RunRecord(database, Buffer())
        assert [run["id"] for run in runs(database)] == [1, 2, 3]


def test_a_small_file_was_checked_when_it_was_opened(database: Database) -> None:
    RunRecord(database, Buffer())
    assert not RunRecord(database, Buffer()).is_check_due
    row = runs(database)[1]
    assert (row["integrity"], row["integrity_checked_at"]) == ("ok", row["started_at"])


def test_a_run_that_starts_while_the_database_is_locked_is_recorded_by_the_first_flush(
    database: Database,
) -> None:
    insert_samples(database, 1005)
    buffer = Buffer()
    with LockHolder(database.path, WRITER):
        run = RunRecord(database, buffer)
        assert runs(database) == []
    stop(database, run, buffer)
    assert [(row["id"], row["stopped_cleanly"]) for row in runs(database)] == [(1, None), (2, 1)]


def fill(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 50000)"
            "INSERT INTO logs (level, message) SELECT 'info', 'line ' || x FROM n"
        )


def test_a_check_that_the_stop_interrupts_reports_nothing_and_stays_due(database: Database) -> None:
    fill(database.path)
    stop, results = Event(), list[str]()
    check = IntegrityCheck(database, stop, results.append, is_due=True)
    stop.set()
    check.run()
    assert (check.is_due, results) == (True, [])
    stop.clear()
    check.run()
    assert (check.is_due, results) == (False, ["ok"])


def test_damage_is_reported_and_stays_due(tmp_path: Path) -> None:
    path = tmp_path / "damaged.db"
    Database(path).close()
    fill(path)
    results = list[str]()
    with Database(path) as database:
        damage(path)
        check = IntegrityCheck(database, Event(), results.append, is_due=True)
        with pytest.raises(DatabaseDamaged):
            check.run()
    assert (check.is_due, results) == (True, ["damaged"])


def run_once(
    collector: Collector, ending: signal.Signals = signal.SIGTERM, until: str = "1"
) -> dict[str, Any]:
    """Run a collector until its row of `collector_runs` meets a condition; the row after the end."""
    with collector:
        assert collector.process
        this_run = f"SELECT * FROM collector_runs WHERE process_id = {collector.process.pid}"
        collector.wait_for(f"{this_run} AND {until}")
        collector.wait_for("SELECT * FROM collector_health WHERE state = 'running'")
        collector.stop(ending)
    (row,) = collector.query(this_run)
    return row


def test_only_a_killed_collector_makes_the_next_one_check_the_file(tmp_path: Path) -> None:
    collector = ImpatientCollector(tmp_path, SETTINGS, EVERY_FILE_IS_LARGE)
    first = run_once(collector)
    assert (first["stopped_cleanly"], first["integrity"]) == (1, None)
    assert first["stopped_at"] >= first["started_at"]
    second = run_once(collector, signal.SIGKILL)
    assert (second["stopped_cleanly"], second["stopped_at"], second["integrity"]) == (None, None, None)
    third = run_once(collector, until="integrity = 'ok'")
    assert third["stopped_cleanly"] == 1
    assert third["integrity_checked_at"] >= third["started_at"]
    assert run_once(collector)["integrity"] is None


def test_a_file_of_0_1_0_is_checked_and_its_oldest_sample_is_recorded(tmp_path: Path) -> None:
    collector = ImpatientCollector(tmp_path, SETTINGS, EVERY_FILE_IS_LARGE)
    run_once(collector)
    with closing(sqlite3.connect(collector.database)) as old:
        old.execute("DROP TABLE collector_runs")
        ((oldest,),) = old.execute("SELECT min(timestamp) FROM host_metrics").fetchall()
    row = run_once(collector, until="integrity = 'ok'")
    assert row["id"] == 2
    (first,) = collector.query("SELECT boot_id, started_boot_seconds, started_at FROM collector_runs LIMIT 1")
    assert first == {"boot_id": None, "started_boot_seconds": None, "started_at": oldest}
