import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from collector.backups import nightly as backup_job
from collector.backups.directory import BackupDirectory
from collector.backups.nightly import (
    LAST_BACKUP_KEY,
    LAST_TEST_KEY,
    BackupTest,
    NightlyBackup,
    back_up,
)
from collector.backups.restoration import prepare_restore
from collector.backups.verification import Contents, verify
from collector.catalog import OWN_TABLES
from collector.commands import backup as backup_command
from collector.database import Database
from collector.database.documented import LOGS, METRICS
from collector.errors import (
    BackupFailed,
    CollectorError,
    DatabaseBusy,
    DatabaseDamaged,
    DatabaseError,
    Stopped,
)
from collector.settings import BackupSettings, Settings
from collector.sources.host import HOST_METRICS
from collector.sources.llama.metrics import LLAMA_METRICS
from collector.views import VIEWS
from tests.support.damage import damage

TONIGHT = datetime.fromisoformat("2026-11-03T02:00:00")
NIGHT = TONIGHT.timestamp()
HOUR, DAY = 3600, 86_400


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(tmp_path / "data" / "llama-dashboard.db", OWN_TABLES, VIEWS) as database:
        for number in range(50):
            database.metrics.save({"cpu_usage": number, "timestamp": number})
        yield database


@pytest.fixture
def place(database: Database, tmp_path: Path) -> BackupDirectory:
    return BackupDirectory(tmp_path / "data" / "backup", database.path)


def rows_of(path: Path) -> list[tuple[int, float]]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as reader:
        assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return reader.execute("SELECT timestamp, cpu_usage FROM metrics ORDER BY id").fetchall()


def names(place: BackupDirectory) -> list[str]:
    """Everything in the directory, half-made files as well."""
    return sorted(path.name for path in place.directory.iterdir())


def take(database: Database, place: BackupDirectory, at: float = NIGHT, keep: int = 7) -> Path:
    return Path(back_up(database, place, keep, threading.Event(), lambda: at).file)


# One backup


def test_a_backup_holds_every_row_and_bears_its_time(database: Database, place: BackupDirectory) -> None:
    path = take(database, place)
    assert path.name == "llama-dashboard-20261103-020000.db"
    assert rows_of(path) == rows_of(database.path)
    assert names(place) == [path.name]


def test_a_backup_has_the_mode_and_the_owner_of_the_database(
    database: Database, place: BackupDirectory
) -> None:
    database.path.chmod(0o640)
    status, original = take(database, place).stat(), database.path.stat()
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert (status.st_uid, status.st_gid) == (original.st_uid, original.st_gid)


def test_what_is_written_while_it_is_copied_is_whole_in_the_copy(
    database: Database, place: BackupDirectory, monkeypatch: pytest.MonkeyPatch
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
    monkeypatch.setattr(backup_job, "_SHORTEST_REST_SECONDS", 0.01)
    writer.start()
    path = take(database, place)
    writer.join()
    assert written.is_set()
    rows = rows_of(path)
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


def test_readers_are_never_shut_out_by_a_backup(
    database: Database, place: BackupDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collector.database.database.COPY_STEP_PAGES", 1)
    command = [sys.executable, "-c", READER, str(database.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as reader:
        assert reader.stdout
        assert reader.stdout.readline() == "ready\n"
        copies = 0
        while reader.poll() is None:
            take(database, place, NIGHT + copies * 60)
            copies += 1
        assert reader.stderr
        assert (reader.returncode, reader.stderr.read()) == (0, "")
    assert copies > 0


def test_no_commit_waits_while_the_rows_of_a_table_of_samples_are_counted(
    database: Database, place: BackupDirectory
) -> None:
    database.run_script("CREATE TABLE theirs (id, note); INSERT INTO theirs VALUES (1, 'x')")
    statements: list[str] = []
    database._connection.set_trace_callback(statements.append)
    summary = back_up(database, place, 7, threading.Event())
    at_once = {sql.split()[-1] for sql in statements if "count(*)" in sql and "WHERE" not in sql}
    assert '"theirs"' in at_once
    assert at_once.isdisjoint({f'"{table.name}"' for table in (METRICS, LOGS, HOST_METRICS, LLAMA_METRICS)})
    assert summary.rows >= 51


def test_only_the_newest_are_kept(database: Database, place: BackupDirectory) -> None:
    paths = [take(database, place, NIGHT + day * DAY, keep=3) for day in range(5)]
    assert place.backups() == paths[2:]


def test_files_that_are_no_backups_stay(database: Database, place: BackupDirectory) -> None:
    place.directory.mkdir()
    mine = place.directory / "llama-dashboard-live.db"
    mine.touch()
    take(database, place, keep=1)
    take(database, place, NIGHT + DAY, keep=1)
    assert mine.exists()
    assert len(place.backups()) == 1


def test_a_backup_from_a_wrong_clock_does_not_displace_the_new_one(
    database: Database, place: BackupDirectory
) -> None:
    wrong = take(database, place, NIGHT + 3650 * DAY)
    older, newer = take(database, place, keep=2), take(database, place, NIGHT + DAY, keep=2)
    assert place.backups() == [newer, wrong]
    assert database.meta.get(LAST_BACKUP_KEY)["file"] == str(newer)
    assert take(database, place, NIGHT + 2 * DAY, keep=1) in place.backups()
    assert not older.exists()


def test_a_copy_is_for_its_owner_alone_until_it_is_done(
    database: Database, place: BackupDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []

    def looked_at(copy: Path, *others: Any) -> Contents:
        modes.append(stat.S_IMODE(copy.stat().st_mode))
        return verify(copy, *others)

    monkeypatch.setattr(backup_job, "verify", looked_at)
    monkeypatch.setattr(backup_command, "verify", looked_at)
    take(database, place)
    monkeypatch.chdir(database.path.parents[1])
    backup_command.back_up_now(Settings())  # beside this process, which holds the lock
    assert modes == [0o600, 0o600]
    assert len(place.backups()) == 2


def test_a_copy_is_proved_at_the_lowest_priority(
    database: Database, place: BackupDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    priorities = []

    def looked_at(*arguments: Any) -> Contents:
        priorities.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return verify(*arguments)

    monkeypatch.setattr(backup_job, "verify", looked_at)
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    take(database, place)
    assert priorities == [19]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


@pytest.mark.slow
def test_a_directory_that_root_makes_belongs_to_the_owner_of_the_database(
    database: Database, place: BackupDirectory
) -> None:
    for path in (database.path.parent, database.path):
        os.chown(path, 65534, 65534)
    status = take(database, place).stat()
    assert (status.st_uid, place.directory.stat().st_uid) == (65534, 65534)


def test_a_virtual_table_of_another_program_is_no_obstacle(
    database: Database, place: BackupDirectory
) -> None:
    with database.transaction() as connection:
        connection.execute("CREATE VIRTUAL TABLE words USING fts4(text)")
        connection.execute("INSERT INTO words VALUES ('found')")
    with closing(sqlite3.connect(take(database, place))) as copy:
        assert copy.execute("SELECT text FROM words WHERE text MATCH 'found'").fetchall() == [("found",)]


def test_two_backups_of_one_second_have_two_names(database: Database, place: BackupDirectory) -> None:
    assert take(database, place) != take(database, place)


def test_what_a_killed_backup_left_is_removed_by_the_next(database: Database, place: BackupDirectory) -> None:
    place.directory.mkdir()
    (place.directory / ".llama-dashboard-20261102-020000.db.partial").write_bytes(b"half")
    path = take(database, place)
    assert names(place) == [path.name]


def test_a_second_backup_at_the_same_time_is_refused(database: Database, place: BackupDirectory) -> None:
    with place.new_backup(TONIGHT) as (copy, _backup):
        copy.write_bytes(b"")
        with pytest.raises(DatabaseBusy, match="under way"):
            take(database, place)


# What goes wrong


def test_a_backup_that_is_ended_early_leaves_nothing(database: Database, place: BackupDirectory) -> None:
    older = take(database, place)
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        back_up(database, place, 7, stop)
    assert names(place) == [older.name]


def test_without_room_the_older_ones_stay_and_the_error_says_how_much_is_needed(
    database: Database, place: BackupDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = take(database, place)
    monkeypatch.setattr("collector.backups.directory.SPARE_BYTES", 2**60)
    with pytest.raises(BackupFailed, match=r"MB free and a backup needs .* MB"):
        take(database, place, NIGHT + DAY, keep=1)
    assert names(place) == [older.name]


def test_a_directory_that_cannot_be_made_is_named(database: Database, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BackupFailed, match=r"file/backup cannot be used"):
        take(database, BackupDirectory(tmp_path / "file" / "backup", database.path))


def test_a_damaged_database_gives_no_backup_and_the_good_ones_stay(tmp_path: Path) -> None:
    path = tmp_path / "llama-dashboard.db"
    with Database(path, OWN_TABLES, VIEWS) as database:
        place = BackupDirectory(tmp_path / "backup", path)
        with database.transaction():
            for number in range(20_000):
                database.metrics.save({"cpu_usage": number, "timestamp": number})
        good = take(database, place)
        damage(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("collector.database.connection.QUICK_CHECK_MAX_BYTES", 0)  # as of a large file
        with Database(path) as database, pytest.raises(DatabaseDamaged, match="restore --latest"):
            take(database, place, NIGHT + DAY, keep=1)
    assert names(place) == [good.name]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MB; only root may mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(path)], check=True)
    yield path
    subprocess.run(["umount", str(path)], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_the_older_ones_and_is_used_again_when_there_is_room(
    database: Database, small_disk: Path
) -> None:
    place = BackupDirectory(small_disk, database.path)
    older = take(database, place)
    ballast = small_disk / "ballast"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("collector.backups.directory.SPARE_BYTES", -(2**40))  # it fills up only meanwhile
        with suppress(OSError), ballast.open("wb") as file:
            while True:
                file.write(b"x" * 4096)
                file.flush()
        with pytest.raises(CollectorError, match="full"):
            take(database, place, NIGHT + DAY)
        assert names(place) == ["ballast", older.name]
        ballast.unlink()
        newer = take(database, place, NIGHT + DAY)
    assert names(place) == [older.name, newer.name]


# The schedule


class Nights:
    """A nightly backup with a clock that is set by hand."""

    def __init__(self, database: Database, place: BackupDirectory, schedule: str = "0 2 * * *") -> None:
        self.now = NIGHT - 10 * HOUR
        self.place = place
        settings = BackupSettings(schedule=schedule)
        self.database = database
        self.stop = threading.Event()
        self.job = NightlyBackup(database, place, settings, self.stop, lambda: self.now)

    def look(self, now: float) -> int:
        """How many backups there are after a look at that time."""
        self.now = now
        self.job.run()
        return len(self.place.backups())


def test_a_new_database_waits_for_its_first_night(database: Database, place: BackupDirectory) -> None:
    nights = Nights(database, place)
    assert nights.look(NIGHT - 10 * HOUR) == 0
    assert nights.look(NIGHT - 1) == 0
    assert nights.look(NIGHT) == 1
    assert nights.look(NIGHT + 60) == 1
    assert nights.look(NIGHT + DAY) == 2


def test_a_night_that_was_slept_through_is_made_up_for_once(
    database: Database, place: BackupDirectory
) -> None:
    nights = Nights(database, place)
    nights.look(NIGHT - 10 * HOUR)
    again = Nights(database, place)  # another start, five nights later
    assert again.look(NIGHT + 5 * DAY + 7 * HOUR) == 1
    assert again.look(NIGHT + 5 * DAY + 8 * HOUR) == 1


def test_a_clock_that_was_wrong_does_not_end_the_backups(database: Database, place: BackupDirectory) -> None:
    nights = Nights(database, place)
    nights.look(NIGHT - 10 * HOUR)
    assert nights.look(NIGHT + 3650 * DAY) == 1
    assert nights.look(NIGHT) == 1  # back in the present: the next night counts
    assert nights.look(NIGHT + DAY) == 2


def test_a_failed_backup_fails_on_until_it_is_tried_again(
    database: Database, place: BackupDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    nights = Nights(database, place)
    nights.look(NIGHT - 10 * HOUR)
    place.directory.parent.mkdir(exist_ok=True)
    place.directory.write_text("in the way")
    with pytest.raises(BackupFailed):
        nights.look(NIGHT)
    place.directory.unlink()
    with pytest.raises(BackupFailed):  # no attempt yet: the state stays
        nights.look(NIGHT + 60)
    monkeypatch.setattr(backup_job, "RETRY_SECONDS", 0.0)
    nights.job._retry_at = time.monotonic()
    assert nights.look(NIGHT + 120) == 1


def test_a_backup_that_is_under_way_elsewhere_is_waited_for(
    database: Database, place: BackupDirectory
) -> None:
    nights = Nights(database, place)
    nights.look(NIGHT - 10 * HOUR)
    with place.new_backup(TONIGHT) as (copy, _backup):
        copy.write_bytes(b"")
        with pytest.raises(DatabaseBusy):
            nights.look(NIGHT)
    assert nights.look(NIGHT + 60) == 2


def test_what_fails_because_the_collector_ends_is_no_failure(
    database: Database, place: BackupDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    nights = Nights(database, place)
    nights.look(NIGHT - 10 * HOUR)

    def interrupted(*_: object) -> Contents:
        nights.stop.set()
        raise DatabaseError("interrupted")

    monkeypatch.setattr(backup_job, "verify", interrupted)
    assert nights.look(NIGHT) == 0
    assert names(place) == []
    monkeypatch.undo()
    assert Nights(database, place).look(NIGHT + HOUR) == 1  # the next start


# The trial restore


def trial(database: Database, place: BackupDirectory, now: float) -> BackupTest:
    restore = partial(prepare_restore, tables=OWN_TABLES, views=VIEWS)
    return BackupTest(database, place, 30, restore, threading.Event(), lambda: now)


def test_the_newest_backup_is_restored_on_trial_once_a_month(
    database: Database, place: BackupDirectory
) -> None:
    trial(database, place, NIGHT).run()
    assert database.meta.get(LAST_TEST_KEY) is None  # there is no backup yet
    path = take(database, place)
    trial(database, place, NIGHT + DAY).run()
    stored = database.meta.get(LAST_TEST_KEY)
    assert (stored["verdict"], stored["file"], stored["time"]) == ("ok", str(path), NIGHT + DAY)
    assert stored["rows"] == sum(
        database.query(f"SELECT count(*) AS n FROM {name}")[0]["n"]
        for name in ("metrics", "models", "logs", "server_config")
    )
    assert names(place) == [path.name]
    trial(database, place, NIGHT + 30 * DAY).run()
    assert database.meta.get(LAST_TEST_KEY)["time"] == NIGHT + DAY
    trial(database, place, NIGHT + 32 * DAY).run()
    assert database.meta.get(LAST_TEST_KEY)["time"] == NIGHT + 32 * DAY


def test_a_backup_that_cannot_be_restored_is_told(database: Database, place: BackupDirectory) -> None:
    path = take(database, place)
    damage(path)
    for _ in range(2):  # it stays due
        with pytest.raises(DatabaseDamaged):
            trial(database, place, NIGHT + DAY).run()
    assert path.name in database.meta.get(LAST_TEST_KEY)["verdict"]
    assert names(place) == [path.name]
    good = take(database, place, NIGHT + 2 * DAY)
    trial(database, place, NIGHT + 2 * DAY).run()
    assert database.meta.get(LAST_TEST_KEY)["file"] == str(good)


def test_what_a_killed_trial_left_is_removed_by_the_next_backup(
    database: Database, place: BackupDirectory
) -> None:
    path = take(database, place)
    with place.trial(path) as left:
        pass
    left.write_bytes(b"half")
    left.with_name(f"{left.name}-journal").write_bytes(b"half")
    newer = take(database, place, NIGHT + DAY)
    assert names(place) == [path.name, newer.name]


def test_the_last_backup_is_noted_in_the_metadata(database: Database, place: BackupDirectory) -> None:
    path = take(database, place)
    noted = database.meta.get(LAST_BACKUP_KEY)
    assert (noted["file"], noted["time"], noted["bytes"]) == (str(path), NIGHT, path.stat().st_size)
    assert timedelta(seconds=noted["seconds"]) >= timedelta(0)
