"""Backups and restores where clocks, disks, directories or other programs are not as they should be."""

import json
import os
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

import pytest

from collector.backups.creation import back_up
from collector.backups.directory import BackupDirectory
from collector.backups.identity import HISTORY_KEY, HOST_KEY, read_file_identity
from collector.backups.restoration import prepare_restore
from collector.backups.sql_text import dump
from collector.catalog import OWN_TABLES, open_database
from collector.commands.restore import restore_latest
from collector.database import Database
from collector.database.connection import BUSY_TIMEOUT_SECONDS
from collector.database.documented import METRICS
from collector.database.repositories.base import Record
from collector.errors import BackupFailed, DatabaseBusy, DatabaseDamaged, DatabaseError, ExportFailed
from collector.settings import Settings, settings_from
from collector.views import VIEWS
from tests.support.backups import DAY, NIGHT, make_backup
from tests.support.collector import Collector
from tests.support.damage import damage

YEARS = 3650 * DAY


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_from({"database": {"path": str(tmp_path / "data" / "llama.db")}})


@pytest.fixture
def directory(settings: Settings) -> BackupDirectory:
    return BackupDirectory(settings.backup_directory, settings.database_path)


def add_samples(database: Database, number: int) -> None:
    with database.transaction() as connection:
        connection.executemany(METRICS.insert_statement, [METRICS.row({"timestamp": NIGHT})] * number)


def samples(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT count(*) FROM metrics").fetchone()[0])


def three_backups(settings: Settings, directory: BackupDirectory) -> list[Path]:
    """Make backups with 10, 20 and 30 samples."""
    paths = []
    with open_database(settings.database_path) as database:
        for night in range(3):
            add_samples(database, 10)
            paths.append(make_backup(database, directory, NIGHT + night * DAY, keep=7))
    return paths


def test_the_newest_backup_is_restored(settings: Settings, directory: BackupDirectory) -> None:
    three_backups(settings, directory)
    restore_latest(settings)
    assert samples(settings.database_path) == 30


def test_only_a_backup_that_is_damaged_makes_room_for_an_older_one(
    settings: Settings, directory: BackupDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = three_backups(settings, directory)
    damage(paths[2])
    restore_latest(settings)
    assert samples(settings.database_path) == 20
    assert str(paths[2]) in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [DatabaseError("the disk is full"), DatabaseBusy("locked"), BackupFailed("EIO")], ids=str
)
def test_a_temporary_reason_restores_nothing(
    error: Exception, settings: Settings, directory: BackupDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    three_backups(settings, directory)
    with open_database(settings.database_path) as database:
        add_samples(database, 1)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("collector.commands.restore.prepare_restore", fail)
    with pytest.raises(type(error), match=str(error)):
        restore_latest(settings)
    assert samples(settings.database_path) == 31


def test_a_lock_on_the_database_restores_nothing(settings: Settings, directory: BackupDirectory) -> None:
    three_backups(settings, directory)
    with closing(sqlite3.connect(settings.database_path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(DatabaseBusy):
            restore_latest(settings)


def test_a_backup_that_a_wrong_clock_named_is_not_the_newest(
    settings: Settings, directory: BackupDirectory
) -> None:
    with open_database(settings.database_path) as database:
        add_samples(database, 10)
        wrong = make_backup(database, directory, NIGHT + YEARS, keep=7)
        add_samples(database, 10)
        right = make_backup(database, directory, NIGHT, keep=7)
        identity = read_file_identity(right)
        assert directory.of_history(identity.history) == [wrong, right]
        add_samples(database, 10)
        newest = make_backup(database, directory, NIGHT + DAY, keep=2)
    assert directory.of_history(identity.history) == [right, newest]
    restore_latest(settings)
    assert samples(settings.database_path) == 30


def test_the_backups_of_a_lost_database_stay(settings: Settings, directory: BackupDirectory) -> None:
    lost = three_backups(settings, directory)
    settings.database_path.unlink()
    with open_database(settings.database_path) as database:  # begun anew
        add_samples(database, 1)
        for night in range(3, 9):
            make_backup(database, directory, NIGHT + night * DAY, keep=2)
    assert set(lost) < set(directory.backups())
    assert len(directory.backups()) == 3 + 2


def test_after_the_loss_of_the_database_the_newest_history_is_restored(
    settings: Settings, directory: BackupDirectory
) -> None:
    three_backups(settings, directory)
    settings.database_path.unlink()
    restore_latest(settings)
    assert samples(settings.database_path) == 30


def test_backups_of_another_host_in_the_same_directory_are_neither_deleted_nor_restored(
    settings: Settings, directory: BackupDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    own = three_backups(settings, directory)
    foreign = own[2].with_name("llama-20991231-020000.db")
    shutil.copy(own[2], foreign)
    with closing(sqlite3.connect(foreign)) as other, other:
        other.execute("UPDATE metadata SET value = '\"theirs\"' WHERE key IN (?, ?)", (HISTORY_KEY, HOST_KEY))
        other.execute("INSERT INTO metrics (timestamp) VALUES (1)")
    with open_database(settings.database_path) as database:
        make_backup(database, directory, NIGHT + 5 * DAY, keep=1)
    assert foreign in directory.backups()
    settings.database_path.unlink()
    restore_latest(settings)
    assert samples(settings.database_path) == 30
    assert "1 backups of other databases are not considered" in capsys.readouterr().err


def test_a_backup_of_version_0_1_0_has_no_ids_and_counts_as_one_of_ours(
    settings: Settings, directory: BackupDirectory
) -> None:
    (old, *_) = three_backups(settings, directory)
    with closing(sqlite3.connect(old)) as other, other:
        other.execute("DELETE FROM metadata")
    with open_database(settings.database_path) as database:
        make_backup(database, directory, NIGHT + 5 * DAY, keep=2)
    assert not old.exists()


def test_a_restored_database_begins_a_history_of_its_own(
    settings: Settings, directory: BackupDirectory
) -> None:
    three_backups(settings, directory)
    before = read_file_identity(settings.database_path).history
    restore_latest(settings)
    assert before
    assert read_file_identity(settings.database_path).history is None, "the next backup gives it one"


def test_a_backup_beside_a_program_that_writes_all_the_time_ends(
    settings: Settings, directory: BackupDirectory
) -> None:
    stop = threading.Event()

    def write() -> None:
        with closing(sqlite3.connect(settings.database_path, timeout=30, isolation_level=None)) as other:
            while not stop.wait(0.002):
                other.execute("INSERT INTO theirs VALUES (1)")

    with open_database(settings.database_path) as database:
        add_samples(database, 100_000)
        with database.transaction() as connection:
            connection.execute("CREATE TABLE theirs (n)")
        program = threading.Thread(target=write)
        program.start()
        try:
            summary = back_up(database, directory, 7, threading.Event())
        finally:
            stop.set()
            program.join()
    assert samples(Path(summary.file)) == 100_000


def test_a_backup_waits_for_a_lock_that_is_held_for_longer_than_a_query_waits(
    settings: Settings, directory: BackupDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock is taken before each of the first three statements that count rows."""
    seen: set[str] = set()

    def query(statement: str, parameters: Sequence[object] = ()) -> list[Record]:
        if statement.startswith("SELECT count(*)") and statement not in seen and len(seen) < 3:
            seen.add(statement)
            other.execute("BEGIN EXCLUSIVE")
            threading.Timer(3 * BUSY_TIMEOUT_SECONDS, other.rollback).start()
        return Database.query(database, statement, parameters)

    with (
        open_database(settings.database_path) as database,
        closing(
            sqlite3.connect(settings.database_path, isolation_level=None, check_same_thread=False)
        ) as other,
    ):
        add_samples(database, 1_000)
        monkeypatch.setattr(database, "query", query)
        summary = back_up(database, directory, 7, threading.Event())
    assert len(seen) == 3
    assert samples(Path(summary.file)) == 1_000


# What the disk must have before a backup or restore counts


def test_a_backup_and_its_directory_are_synchronized_before_it_has_its_name(
    settings: Settings, directory: BackupDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    synchronized = record_synchronized(monkeypatch)
    (path, *_) = three_backups(settings, directory)
    partial = directory.path / f".{path.name}.partial"
    assert str(partial) in synchronized
    assert synchronized.index(str(partial)) < synchronized.index(str(directory.path))


def test_a_restored_file_and_its_directory_are_synchronized(
    settings: Settings, directory: BackupDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    three_backups(settings, directory)
    synchronized = record_synchronized(monkeypatch)
    restore_latest(settings)
    new = settings.database_path.with_name(f".{settings.database_path.name}.restoring")
    assert str(new) in synchronized
    assert synchronized[-1] == str(settings.database_path.parent)


def record_synchronized(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list to which the path of each file or directory is added that is synchronized from now on."""
    paths: list[str] = []
    synchronize = os.fsync

    def record(descriptor: int) -> None:
        paths.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        synchronize(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    return paths


def test_a_copy_that_is_damaged_does_not_become_a_backup(
    settings: Settings, directory: BackupDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_to = Database.copy_to

    def copy_and_damage(database: Database, path: Path, between_steps: object) -> None:
        copy_to(database, path, between_steps)  # type: ignore[arg-type]
        damage(path)

    monkeypatch.setattr(Database, "copy_to", copy_and_damage)
    with open_database(settings.database_path) as database:
        add_samples(database, 1000)
        with pytest.raises(DatabaseDamaged):
            back_up(database, directory, 7, threading.Event())
    assert directory.backups() == []


def test_a_damaged_backup_is_not_prepared_for_a_restore(
    settings: Settings, directory: BackupDirectory, tmp_path: Path
) -> None:
    (path, *_) = three_backups(settings, directory)
    damage(path)
    with pytest.raises(DatabaseDamaged):
        prepare_restore(path, tmp_path / "new.db", OWN_TABLES, VIEWS)


# The SQL text

HOSTILE_SCHEMAS = {
    "a second statement": "CREATE TABLE x (a);\n.shell touch {proof}\n",
    "a line with a slash": "CREATE TABLE x (a)\n/\n.shell touch {proof}\n",
    "a line with go": "CREATE TABLE x (a)\nGO\n.shell touch {proof}\n",
    "a comment at its end": "CREATE TABLE x (a); --\n.shell touch {proof}\n",
    "no statement": ".shell touch {proof}\n",
}


@pytest.mark.parametrize("sql", HOSTILE_SCHEMAS.values(), ids=HOSTILE_SCHEMAS)
def test_sql_text_runs_no_command_of_the_shell(sql: str, tmp_path: Path) -> None:
    shell = shutil.which("sqlite3")
    if shell is None:
        pytest.skip("the sqlite3 shell is not installed")
    path, proof = tmp_path / "llama.db", tmp_path / "proof"
    open_database(path).close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE x (a)")
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'x'", (sql.format(proof=proof),))
    text: list[bytes] = []
    with closing(sqlite3.connect(path)) as connection, suppress(ExportFailed, sqlite3.DatabaseError):
        text.extend(dump(connection))
    subprocess.run([shell, str(tmp_path / "new.db")], input=b"".join(text), capture_output=True, check=False)
    assert not proof.exists()


def test_a_backup_by_command_beside_a_collector_is_shown_by_status(tmp_path: Path) -> None:
    settings = '[llama_server]\nurl = ""\n[gpu]\nenabled = false\n[backup]\nschedule = ""\n'
    with Collector(tmp_path, settings) as collector:
        collector.wait_for("SELECT * FROM metrics")
        ended = collector.call("backup")
        assert (ended.returncode, ended.stderr) == (0, "")
        file = ended.stdout.partition(":")[0]
        status = json.loads(collector.call("status", "--json").stdout)
        assert status["backup"]["file"] == file
        assert collector.stop() == 0
