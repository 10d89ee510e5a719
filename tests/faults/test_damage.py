"""A database that a failing disk has damaged, and what can be done."""

import shutil
import signal
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from threading import Event

import pytest

from collector.catalog import OWN_TABLES
from collector.daemon.run_record import RunRecord
from collector.database import Database, integrity_check
from collector.database.buffer import Buffer
from collector.database.connection import QUICK_CHECK_MAX_BYTES
from collector.database.integrity_check import IntegrityCheck
from collector.errors import DatabaseDamaged
from tests.support.collector import Collector
from tests.support.damage import damage
from tests.support.sqlite_shell import recovering_shell

QUIET = '[llama_server]\nurl = ""\n[gpu]\nenabled = false\n[models]\nrescan_interval = 0\n'
ROWS = 20_000


def fill(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(
            "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < ?)"
            "INSERT INTO logs (level, message, source) SELECT 'info', 'line ' || x, 'test' FROM n",
            (ROWS,),
        )
        connection.commit()


def count(path: Path) -> int:
    with closing(sqlite3.connect(path)) as reader:
        return int(reader.execute("SELECT count(*) FROM logs WHERE source = 'test'").fetchone()[0])


def damaged(tmp_path: Path, settings: str = "") -> Collector:
    """Return a collector whose database was backed up and then damaged."""
    collector = Collector(
        tmp_path,
        f'[database]\npath = "{tmp_path}/data/llama-dashboard.db"\nflush_interval = 1\n{settings}{QUIET}',
    )
    with collector:
        collector.wait_for("SELECT * FROM metrics")
        collector.stop()
    fill(collector.database)
    assert collector.call("backup").returncode == 0
    damage(collector.database)
    return collector


def test_a_damaged_database_prevents_the_start_and_both_remedies_are_named(tmp_path: Path) -> None:
    collector = damaged(tmp_path)
    broken = collector.database.read_bytes()
    ended = collector.call("run")
    assert ended.returncode == 1
    assert "restore --latest" in ended.stderr
    assert ".recover" in ended.stderr
    assert collector.database.read_bytes() == broken
    restored = collector.call("restore", "--latest")
    assert restored.returncode == 0, restored.stderr
    assert count(collector.database) == ROWS
    (aside,) = tmp_path.glob("data/*.before-restore-*")
    assert aside.read_bytes() == broken
    with collector:
        collector.wait_for("SELECT * FROM collector_health WHERE state = 'running'")


def test_check_full_finds_damage_and_says_what_to_do(tmp_path: Path) -> None:
    collector = damaged(tmp_path)
    ended = collector.call("check", "--full")
    assert ended.returncode == 1
    line = next(line for line in ended.stdout.splitlines() if " damage " in line)
    assert line.startswith("problem")
    assert "restore --latest" in line
    shutil.copy(next(tmp_path.glob("data/backup/*.db")), collector.database)
    assert "was read in full and is sound" in collector.call("check", "--full").stdout


def test_if_the_settings_allow_it_the_damaged_file_is_set_aside_and_an_empty_one_created(
    tmp_path: Path,
) -> None:
    collector = damaged(tmp_path, 'on_damage = "fresh"\n')
    broken = collector.database.read_bytes()
    with collector:
        collector.wait_for("SELECT * FROM metrics")
        (logged,) = collector.wait_for(
            "SELECT * FROM logs WHERE level = 'error' AND message LIKE '%set aside%'"
        )
        assert collector.stop() == 0
    (kept,) = tmp_path.glob("data/*.damaged-*")
    assert kept.read_bytes() == broken
    assert kept.name in logged["message"]
    assert count(collector.database) == 0


def test_a_file_that_is_no_database_is_never_set_aside(tmp_path: Path) -> None:
    collector = Collector(
        tmp_path, f'[database]\npath = "{tmp_path}/data/llama-dashboard.db"\non_damage = "fresh"\n{QUIET}'
    )
    collector.database.parent.mkdir()
    collector.database.write_text("my diary " * 1000)
    ended = collector.call("run")
    assert ended.returncode == 1
    assert "no SQLite database" in ended.stderr
    assert collector.database.read_text().startswith("my diary")


@pytest.mark.slow
def test_the_shell_recovers_what_can_be_read_and_the_collector_continues_with_it(tmp_path: Path) -> None:
    """Recover with the sqlite3 shell, as the documentation of the database describes it."""
    collector = damaged(tmp_path)
    path, recovered, shell = collector.database, tmp_path / "recovered.db", recovering_shell()
    script = subprocess.run([shell, path, ".recover"], capture_output=True, check=True).stdout
    subprocess.run([shell, recovered], input=script, check=True, capture_output=True)
    path.rename(path.with_name(f"{path.name}.corrupted"))
    recovered.rename(path)
    saved = count(path)
    assert 0 < saved < ROWS
    with collector:
        collector.wait_for("SELECT * FROM collector_health WHERE state = 'running'")
        assert collector.stop() == 0
    assert count(path) == saved


def large_and_damaged(tmp_path: Path, on_damage: str) -> Collector:
    """Return a collector that was killed; its database of more than 32 MB is damaged in the oldest lines."""
    collector = Collector(
        tmp_path,
        f'[database]\npath = "{tmp_path}/data/llama-dashboard.db"\nflush_interval = 1\n'
        f'on_damage = "{on_damage}"\n[sampling]\ninterval = 1\n{QUIET}',
    )
    with collector:
        collector.wait_for("SELECT * FROM metrics")
        collector.stop(signal.SIGKILL)
    for _ in range(25):
        fill(collector.database)
    assert collector.database.stat().st_size > QUICK_CHECK_MAX_BYTES
    damage(collector.database)
    return collector


@pytest.mark.slow
def test_damage_that_is_found_while_the_collector_runs_stops_it_and_every_later_start(tmp_path: Path) -> None:
    collector = large_and_damaged(tmp_path, "stop")
    for _ in range(2):
        ended = collector.call("run")
        assert ended.returncode == 1
        assert ended.stderr.splitlines()[-1].startswith("llama-collector: ")
        assert "restore --latest" in ended.stderr.splitlines()[-1]
    assert not list(tmp_path.glob("data/*.damaged-*"))


@pytest.mark.slow
def test_damage_that_is_found_while_the_collector_runs_sets_the_file_aside_if_the_settings_allow_it(
    tmp_path: Path,
) -> None:
    collector = large_and_damaged(tmp_path, "fresh")
    with collector:
        collector.wait_for("SELECT * FROM pragma_page_count WHERE page_count < 1000")  # the new one
        (logged,) = collector.wait_for("SELECT * FROM logs WHERE message LIKE '%set aside%'")
        assert collector.stop() == 0
    (kept,) = tmp_path.glob("data/*.damaged-*")
    assert kept.name in logged["message"]
    assert kept.stat().st_size > QUICK_CHECK_MAX_BYTES
    assert collector.database.stat().st_size < QUICK_CHECK_MAX_BYTES


@pytest.mark.parametrize("ending", ["clean", "killed"])
def test_a_large_database_is_checked_only_after_a_run_that_did_not_stop_cleanly(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = Collector(tmp_path, QUIET)
    with collector:
        collector.wait_for("SELECT * FROM metrics")
        collector.stop(signal.SIGTERM if ending == "clean" else signal.SIGKILL)
    fill(collector.database)
    damage(collector.database)
    monkeypatch.setattr("collector.database.connection.QUICK_CHECK_MAX_BYTES", 0)
    monkeypatch.setattr(integrity_check, "QUICK_CHECK_MAX_BYTES", 0)
    with Database(collector.database, OWN_TABLES) as database:
        run = RunRecord(database, Buffer())
        check = IntegrityCheck(database, Event(), run.add_integrity, is_due=run.is_check_due)
        if ending == "clean":
            check.run()
            return
        for _ in range(2):  # it stays due
            with pytest.raises(DatabaseDamaged, match="restore --latest"):
                check.run()
