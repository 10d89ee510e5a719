import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from collector.backups import creation
from collector.backups.creation import AWAITED_SINCE_KEY, LAST_BACKUP_KEY, back_up
from collector.backups.directory import BackupDirectory
from collector.backups.verification import Contents, read_contents, verify
from collector.catalog import OWN_TABLES
from collector.commands.backup import back_up_now
from collector.database import Database
from collector.database.documented import LOGS, METRICS
from collector.errors import BackupFailed, CollectorError, DatabaseBusy, DatabaseDamaged, Stopped
from collector.settings import Settings
from collector.sources.host import HOST_METRICS
from collector.sources.llama.metrics import LLAMA_METRICS
from collector.views import VIEWS
from tests.support.backups import DAY, NIGHT, TONIGHT, make_backup, metrics_in, names
from tests.support.damage import damage

# The copy


def test_a_backup_contains_every_row_and_is_named_after_its_time(
    database: Database, directory: BackupDirectory
) -> None:
    path = make_backup(database, directory)
    assert path.name == "llama-dashboard-20261103-020000.db"
    assert metrics_in(path) == metrics_in(database.path)
    assert names(directory) == [path.name]


def test_a_backup_has_the_mode_and_the_owner_of_the_database(
    database: Database, directory: BackupDirectory
) -> None:
    database.path.chmod(0o640)
    status, original = make_backup(database, directory).stat(), database.path.stat()
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert (status.st_uid, status.st_gid) == (original.st_uid, original.st_gid)


def test_transactions_during_the_copy_are_in_the_backup_completely_or_not_at_all(
    database: Database, directory: BackupDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collector.database.database.COPY_STEP_PAGES", 1)
    written = threading.Event()

    def write() -> None:
        for number in range(100, 160):
            with database.transaction():
                database.metrics.save({"cpu_usage": number, "timestamp": number})
                database.logs.add("info", f"row {number}", "test")
        written.set()

    writer = threading.Thread(target=write)
    monkeypatch.setattr(creation, "_MIN_PAUSE_SECONDS", 0.01)
    writer.start()
    path = make_backup(database, directory)
    writer.join()
    assert written.is_set()
    rows = metrics_in(path)
    assert rows[:50] == [(number, float(number)) for number in range(50)]
    with closing(sqlite3.connect(path)) as copy:
        logged = copy.execute("SELECT count(*) FROM logs WHERE source = 'test'").fetchone()[0]
    assert len(rows) == 50 + logged  # both rows of a transaction, or none


READER = """
import sqlite3, sys
print("ready", flush=True)
for _ in range(200):
    reader = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True, timeout=0.2)
    reader.execute("SELECT count(*), max(timestamp) FROM metrics").fetchone()
    reader.close()
"""


def test_readers_are_never_locked_out_by_a_backup(
    database: Database, directory: BackupDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collector.database.database.COPY_STEP_PAGES", 1)
    command = [sys.executable, "-c", READER, str(database.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as reader:
        assert reader.stdout
        assert reader.stdout.readline() == "ready\n"
        copies = 0
        while reader.poll() is None:
            make_backup(database, directory, NIGHT + copies * 60)
            copies += 1
        assert reader.stderr
        assert (reader.returncode, reader.stderr.read()) == (0, "")
    assert copies > 0


def test_no_commit_waits_while_the_rows_of_large_tables_are_counted(
    database: Database, directory: BackupDirectory
) -> None:
    database.run_script("CREATE TABLE theirs (id, note); INSERT INTO theirs VALUES (1, 'x')")
    statements: list[str] = []
    database._connection.set_trace_callback(statements.append)
    summary = back_up(database, directory, 7, threading.Event())
    in_one_step = {sql.split()[-1] for sql in statements if "count(*)" in sql and "WHERE" not in sql}
    assert '"theirs"' in in_one_step
    large = {f'"{table.name}"' for table in (METRICS, LOGS, HOST_METRICS, LLAMA_METRICS)}
    assert in_one_step.isdisjoint(large)
    assert summary.rows >= 51


def test_only_the_owner_can_read_an_incomplete_copy(
    database: Database, directory: BackupDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []

    def recording_verify(copy: Path, *others: Any) -> Contents:
        modes.append(stat.S_IMODE(copy.stat().st_mode))
        return verify(copy, *others)

    monkeypatch.setattr(creation, "verify", recording_verify)
    make_backup(database, directory)
    monkeypatch.chdir(database.path.parents[1])
    back_up_now(Settings())  # while this process has the collector's lock
    assert modes == [0o600, 0o600]
    assert len(directory.backups()) == 2


def test_a_copy_is_verified_at_the_lowest_priority(
    database: Database, directory: BackupDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    priorities = []

    def recording_verify(*arguments: Any) -> Contents:
        priorities.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return verify(*arguments)

    monkeypatch.setattr(creation, "verify", recording_verify)
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    make_backup(database, directory)
    assert priorities == [19]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


@pytest.mark.slow
def test_a_directory_that_root_creates_belongs_to_the_owner_of_the_database(
    database: Database, directory: BackupDirectory
) -> None:
    for path in (database.path.parent, database.path):
        os.chown(path, 65534, 65534)
    status = make_backup(database, directory).stat()
    assert (status.st_uid, directory.path.stat().st_uid) == (65534, 65534)


def test_a_virtual_table_of_another_program_does_not_prevent_a_backup(
    database: Database, directory: BackupDirectory
) -> None:
    with database.transaction() as connection:
        connection.execute("CREATE VIRTUAL TABLE words USING fts4(text)")
        connection.execute("INSERT INTO words VALUES ('found')")
    with closing(sqlite3.connect(make_backup(database, directory))) as copy:
        assert copy.execute("SELECT text FROM words WHERE text MATCH 'found'").fetchall() == [("found",)]


def test_the_last_backup_is_recorded_in_the_metadata(database: Database, directory: BackupDirectory) -> None:
    database.meta.set(AWAITED_SINCE_KEY, NIGHT - DAY)
    path = make_backup(database, directory)
    recorded = database.meta.get(LAST_BACKUP_KEY)
    assert recorded["file"] == str(path)
    assert (recorded["time"], recorded["bytes"]) == (NIGHT, path.stat().st_size)
    assert timedelta(seconds=recorded["seconds"]) >= timedelta(0)
    assert database.meta.get(AWAITED_SINCE_KEY) is None


# The directory


def test_only_the_newest_backups_are_kept(database: Database, directory: BackupDirectory) -> None:
    paths = [make_backup(database, directory, NIGHT + day * DAY, keep=3) for day in range(5)]
    assert directory.backups() == paths[2:]


def test_files_that_are_no_backups_are_never_deleted(database: Database, directory: BackupDirectory) -> None:
    directory.path.mkdir()
    other = directory.path / "llama-dashboard-live.db"
    other.touch()
    make_backup(database, directory, keep=1)
    make_backup(database, directory, NIGHT + DAY, keep=1)
    assert other.exists()
    assert len(directory.backups()) == 1


def test_a_new_backup_is_kept_although_a_wrong_clock_gave_another_one_a_later_name(
    database: Database, directory: BackupDirectory
) -> None:
    wrong = make_backup(database, directory, NIGHT + 3650 * DAY)
    older = make_backup(database, directory, keep=2)
    newer = make_backup(database, directory, NIGHT + DAY, keep=2)
    assert directory.backups() == [newer, wrong]
    assert database.meta.get(LAST_BACKUP_KEY)["file"] == str(newer)
    assert make_backup(database, directory, NIGHT + 2 * DAY, keep=1) in directory.backups()
    assert not older.exists()


def test_two_backups_of_one_second_have_different_names(
    database: Database, directory: BackupDirectory
) -> None:
    assert make_backup(database, directory) != make_backup(database, directory)


def test_the_file_that_a_killed_backup_left_is_deleted_by_the_next_one(
    database: Database, directory: BackupDirectory
) -> None:
    directory.path.mkdir()
    (directory.path / ".llama-dashboard-20261102-020000.db.partial").write_bytes(b"half")
    path = make_backup(database, directory)
    assert names(directory) == [path.name]


def test_a_second_backup_at_the_same_time_is_refused(database: Database, directory: BackupDirectory) -> None:
    with directory.new_backup(TONIGHT) as (copy, _backup):
        copy.write_bytes(b"")
        with pytest.raises(DatabaseBusy, match="under way"):
            make_backup(database, directory)


# Failures


def test_a_backup_that_is_stopped_early_leaves_no_file(
    database: Database, directory: BackupDirectory
) -> None:
    older = make_backup(database, directory)
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        back_up(database, directory, 7, stop)
    assert names(directory) == [older.name]


def test_without_enough_space_the_older_backups_remain_and_the_error_says_how_much_is_needed(
    database: Database, directory: BackupDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = make_backup(database, directory)
    monkeypatch.setattr("collector.backups.directory.SPARE_BYTES", 2**60)
    with pytest.raises(BackupFailed, match=r"MB free and a backup needs .* MB"):
        make_backup(database, directory, NIGHT + DAY, keep=1)
    assert names(directory) == [older.name]


def test_a_directory_that_cannot_be_created_is_named(database: Database, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BackupFailed, match=r"file/backup cannot be used"):
        make_backup(database, BackupDirectory(tmp_path / "file" / "backup", database.path))


def test_rows_that_are_deleted_while_a_copy_is_made_are_not_missing_in_it(
    database: Database, tmp_path: Path
) -> None:
    before = read_contents(database.query)
    with database.transaction() as connection:
        connection.execute("DELETE FROM metrics WHERE id <= 10")
    copy = tmp_path / "copy.db"
    with closing(sqlite3.connect(database.path)) as other:
        other.execute("VACUUM INTO ?", (str(copy),))
    assert verify(copy, before, database.query, lambda: False).rows["metrics"] == before.rows["metrics"] - 10
    with database.transaction() as connection:
        connection.executemany("INSERT INTO metrics (timestamp) VALUES (?)", [(1,)] * 20)
    with pytest.raises(BackupFailed, match="rows of metrics, and there were"):
        verify(copy, before, database.query, lambda: False)


def test_the_start_of_a_backup_is_in_its_name(directory: BackupDirectory) -> None:
    moment = datetime(2026, 11, 26, 2, 0, 5)  # noqa: DTZ001 - names are in local time
    with directory.new_backup(moment) as (copy, path):
        copy.touch()
    assert directory.begun_at(path) == moment


def test_of_a_damaged_database_no_backup_is_made_and_the_good_ones_remain(tmp_path: Path) -> None:
    path = tmp_path / "llama-dashboard.db"
    with Database(path, OWN_TABLES, VIEWS) as database:
        directory = BackupDirectory(tmp_path / "backup", path)
        with database.transaction():
            for number in range(20_000):
                database.metrics.save({"cpu_usage": number, "timestamp": number})
        good = make_backup(database, directory)
        damage(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("collector.database.connection.QUICK_CHECK_MAX_BYTES", 0)  # as of a large file
        with Database(path) as database, pytest.raises(DatabaseDamaged, match="restore --latest"):
            make_backup(database, directory, NIGHT + DAY, keep=1)
    assert names(directory) == [good.name]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MB; only root can mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(path)], check=True)
    yield path
    subprocess.run(["umount", str(path)], check=True)


@pytest.mark.slow
def test_when_the_disk_fills_up_the_older_backups_remain_and_with_free_space_the_next_one_succeeds(
    database: Database, small_disk: Path
) -> None:
    directory = BackupDirectory(small_disk, database.path)
    older = make_backup(database, directory)
    ballast = small_disk / "ballast"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("collector.backups.directory.SPARE_BYTES", -(2**40))  # it fills up only during the copy
        with suppress(OSError), ballast.open("wb") as file:
            while True:
                file.write(b"x" * 4096)
                file.flush()
        with pytest.raises(CollectorError, match="full"):
            make_backup(database, directory, NIGHT + DAY)
        assert names(directory) == ["ballast", older.name]
        ballast.unlink()
        newer = make_backup(database, directory, NIGHT + DAY)
    assert names(directory) == [older.name, newer.name]
