"""`backup` and `restore` as a user runs them."""

import random
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support.collector import Collector
from tests.support.damage import damage
from tests.support.paths import ROOT

QUIET = '[llama_server]\nurl = ""\n[gpu]\nenabled = false\n[models]\nrescan_interval = 0\n'
DOCUMENTED_SCHEMA = ROOT / "tests" / "database" / "documented_schema.sql"


@pytest.fixture
def collector(tmp_path: Path) -> Collector:
    """A collector that has stopped, with a database that contains samples."""
    collector = Collector(tmp_path, f"{QUIET}[sampling]\ninterval = 1\n")
    with collector:
        collector.wait_for("SELECT * FROM metrics")
        collector.stop()
    return collector


def backups(collector: Collector) -> list[Path]:
    return sorted((collector.database.parent / "backup").glob("llama-dashboard-*.db"))


def call(collector: Collector, *arguments: str | Path) -> str:
    ended = collector.call(*map(str, arguments))
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def refused(collector: Collector, *arguments: str | Path) -> str:
    ended = collector.call(*map(str, arguments))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "Traceback" not in ended.stderr
    return ended.stderr


def rows(path: Path, statement: str = "SELECT * FROM metrics ORDER BY id") -> list[Any]:
    with closing(sqlite3.connect(path)) as reader:
        assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return reader.execute(statement).fetchall()


def execute(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(statement)


def names_beside(collector: Collector) -> set[str]:
    return {path.name for path in collector.database.parent.iterdir()}


def test_a_backup_is_restored_and_the_old_database_is_kept(collector: Collector) -> None:
    before = rows(collector.database)
    assert "MB" in call(collector, "backup")
    execute(collector.database, "DELETE FROM metrics")
    collector.database.chmod(0o640)
    output = call(collector, "restore", backups(collector)[0])
    assert rows(collector.database) == before
    kept = next(path for path in collector.database.parent.iterdir() if "before-restore" in path.name)
    assert rows(kept) == []
    assert str(kept) in output
    assert collector.database.stat().st_mode & 0o777 == 0o640
    assert names_beside(collector) == {
        "llama-dashboard.db",
        "llama-dashboard.db.lock",
        kept.name,
        "backup",
    }


def test_while_the_collector_runs_a_backup_is_made_and_a_restore_is_refused(tmp_path: Path) -> None:
    with Collector(tmp_path, f"{QUIET}[sampling]\ninterval = 1\n") as collector:
        collector.wait_for("SELECT * FROM metrics")
        call(collector, "backup")
        (backup,) = backups(collector)
        assert rows(backup)
        assert "Stop it first" in refused(collector, "restore", backup)
        assert "Stop it first" in refused(collector, "restore", "--latest")
        newest = collector.query("SELECT max(id) AS id FROM metrics")[0]["id"]
        collector.wait_for(f"SELECT * FROM metrics WHERE id > {newest}")
        assert collector.stop() == 0


def test_a_database_of_the_documented_version_is_restored_and_migrated(
    collector: Collector, tmp_path: Path
) -> None:
    old = tmp_path / "old.db"
    execute(old, DOCUMENTED_SCHEMA.read_text())
    execute(old, "INSERT INTO metrics (cpu_usage, timestamp) VALUES (7, 8)")
    call(collector, "restore", old)
    assert rows(collector.database, "SELECT cpu_usage, timestamp FROM metrics") == [(7.0, 8)]
    assert rows(collector.database, "SELECT count(*) FROM host_metrics") == [(0,)]
    with collector:
        collector.wait_for("SELECT * FROM metrics WHERE timestamp > 8")


def test_a_missing_database_is_restored(collector: Collector) -> None:
    call(collector, "backup")
    before = rows(collector.database)
    backups(collector)[0].chmod(0o640)
    collector.database.unlink()
    call(collector, "restore", "--latest")
    assert rows(collector.database) == before
    assert collector.database.stat().st_mode & 0o777 == 0o640


def test_a_file_that_is_no_backup_is_refused_and_nothing_changes(
    collector: Collector, tmp_path: Path
) -> None:
    before, names = rows(collector.database), names_beside(collector)
    text, empty, foreign = tmp_path / "text.db", tmp_path / "empty.db", tmp_path / "foreign.db"
    text.write_text("no database at all" * 100)
    empty.touch()
    execute(foreign, "CREATE TABLE songs (title TEXT)")
    assert "restore --list" in refused(collector, "restore", tmp_path / "nowhere.db")
    assert "no SQLite database" in refused(collector, "restore", text)
    assert "no SQLite database" in refused(collector, "restore", empty)
    assert "none of the collector's tables" in refused(collector, "restore", foreign)
    assert rows(collector.database) == before
    assert names_beside(collector) == names


def test_the_newest_good_backup_is_restored_and_the_damaged_one_is_named(collector: Collector) -> None:
    call(collector, "backup")
    (good,) = backups(collector)
    bad = good.with_name("llama-dashboard-20990101-000000.db")
    shutil.copy(good, bad)
    damage(bad)
    listed = call(collector, "restore", "--list").splitlines()
    assert ["  good, " in line for line in listed] == [True, False]
    assert ["  DAMAGED (" in line for line in listed] == [False, True]
    assert listed[1].startswith("2099-01-01 00:00:00")
    ended = collector.call("restore", "--latest")
    assert ended.returncode == 0
    assert str(bad) in ended.stderr
    assert f"is now {good}" in ended.stdout


def test_without_any_backup_restoring_the_latest_is_refused(collector: Collector) -> None:
    assert "contains no good backup" in refused(collector, "restore", "--latest")
    assert "no backup in" in call(collector, "restore", "--list")


def test_while_another_program_holds_a_lock_the_database_is_not_replaced(collector: Collector) -> None:
    call(collector, "backup")
    before, names = rows(collector.database), names_beside(collector)
    with closing(sqlite3.connect(collector.database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert "another program holds a lock" in refused(collector, "restore", backups(collector)[0])
    assert rows(collector.database) == before
    assert names_beside(collector) == names


def test_a_journal_that_a_crash_left_does_not_change_the_restored_database(collector: Collector) -> None:
    call(collector, "backup")
    before = rows(collector.database)
    crash = (
        "import os, sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute('PRAGMA cache_size = 1')\n"
        "c.execute('BEGIN')\n"
        "for n in range(2000): c.execute(\"INSERT INTO logs (level, message) VALUES ('info', hex(randomblob(500)))\")\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", crash, str(collector.database)], check=False)
    assert "llama-dashboard.db-journal" in names_beside(collector)
    call(collector, "restore", "--latest")
    assert rows(collector.database) == before
    assert not [name for name in names_beside(collector) if name.endswith("-journal")]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_restore_killed_at_any_moment_leaves_the_old_or_the_new_database(
    collector: Collector,
) -> None:
    execute(
        collector.database,
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 20000)"
        "INSERT INTO logs (level, message) SELECT 'info', 'line ' || x FROM n",
    )
    call(collector, "backup")
    count = "SELECT count(*) FROM metrics"
    new = rows(collector.database, count)
    execute(collector.database, "INSERT INTO metrics (cpu_usage) VALUES (1), (2), (3)")
    old = rows(collector.database, count)
    pristine = collector.database.read_bytes()
    chance = random.Random(1)
    seen: set[bool] = set()
    seconds = 0.7  # how long a restore takes here, about: as long as the last one that was not killed
    for _ in range(100):
        started = time.monotonic()
        restoring = subprocess.Popen(
            collector.command("restore", "--latest"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        if seen == {False} and chance.random() < 0.2:  # the machine is slower than that
            restoring.wait()
            seconds = time.monotonic() - started
        else:
            time.sleep(chance.uniform(0.2, 1.1) * seconds)
        restoring.kill()
        restoring.wait()
        found = rows(collector.database, count)
        assert found in (old, new)
        seen.add(found == new)
        for kept in collector.database.parent.glob("*.before-restore-*"):
            kept.unlink()
        replacement = collector.database.with_name("replacement")
        replacement.write_bytes(pristine)
        replacement.replace(collector.database)
    assert seen == {True, False}
    call(collector, "restore", "--latest")
    assert rows(collector.database, count) == new
    assert not [name for name in names_beside(collector) if name.startswith(".")]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_backup_killed_at_any_moment_leaves_only_whole_backups(collector: Collector) -> None:
    execute(
        collector.database,
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 20000)"
        "INSERT INTO logs (level, message) SELECT 'info', 'line ' || x FROM n",
    )
    before = rows(collector.database)
    chance = random.Random(2)
    for _ in range(100):
        with subprocess.Popen(
            collector.command("backup"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as backing_up:
            time.sleep(chance.uniform(0.1, 0.6))
            backing_up.kill()
        for backup in backups(collector):
            assert rows(backup) == before
    assert rows(collector.database) == before
    call(collector, "backup")
    assert len(backups(collector)) <= 7
    assert not [path for path in (collector.database.parent / "backup").iterdir() if path.name[0] == "."]
