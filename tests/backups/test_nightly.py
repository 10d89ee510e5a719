import threading
import time

import pytest

from collector.backups import background, creation
from collector.backups.creation import AWAITED_SINCE_KEY, LAST_BACKUP_KEY
from collector.backups.directory import BackupDirectory
from collector.backups.nightly import NightlyBackup
from collector.backups.verification import Contents
from collector.database import Database
from collector.errors import BackupFailed, DatabaseBusy, DatabaseError
from collector.settings import BackupSettings
from tests.support.backups import DAY, HOUR, NIGHT, TONIGHT, make_backup, names


class Nights:
    """A nightly backup whose clock a test sets."""

    def __init__(self, database: Database, directory: BackupDirectory, schedule: str = "0 2 * * *") -> None:
        self.now = NIGHT - 10 * HOUR
        self.directory = directory
        settings = BackupSettings(schedule=schedule)
        self.database = database
        self.stop = threading.Event()
        self.job = NightlyBackup(database, directory, settings, self.stop, lambda: self.now)

    def poll(self, now: float) -> int:
        """Run the job at that time, and return how many backups there are."""
        self.now = now
        self.job.run()
        return len(self.directory.backups())


def test_the_first_backup_of_a_new_database_is_made_in_its_first_night(
    database: Database, directory: BackupDirectory
) -> None:
    nights = Nights(database, directory)
    assert nights.poll(NIGHT - 10 * HOUR) == 0
    assert nights.poll(NIGHT - 1) == 0
    assert nights.poll(NIGHT) == 1
    assert nights.poll(NIGHT + 60) == 1
    assert nights.poll(NIGHT + DAY) == 2


def test_a_night_in_which_no_collector_ran_is_made_up_for_once(
    database: Database, directory: BackupDirectory
) -> None:
    nights = Nights(database, directory)
    nights.poll(NIGHT - 10 * HOUR)
    again = Nights(database, directory)  # another start, five nights later
    assert again.poll(NIGHT + 5 * DAY + 7 * HOUR) == 1
    assert again.poll(NIGHT + 5 * DAY + 8 * HOUR) == 1


def test_a_clock_that_was_wrong_does_not_end_the_backups(
    database: Database, directory: BackupDirectory
) -> None:
    nights = Nights(database, directory)
    nights.poll(NIGHT - 10 * HOUR)
    assert nights.poll(NIGHT + 3650 * DAY) == 1
    assert nights.poll(NIGHT) == 1  # the clock is right again: the next night counts
    assert nights.poll(NIGHT + DAY) == 2


def test_since_when_a_backup_is_awaited_is_recorded_only_while_one_is_awaited(
    database: Database, directory: BackupDirectory
) -> None:
    nights = Nights(database, directory)
    nights.poll(NIGHT - 10 * HOUR)
    assert database.meta.get(AWAITED_SINCE_KEY) == NIGHT - 10 * HOUR
    assert database.meta.get(LAST_BACKUP_KEY) is None
    nights.poll(NIGHT + 3650 * DAY)
    wrong = database.meta.get(LAST_BACKUP_KEY)
    assert (database.meta.get(AWAITED_SINCE_KEY), wrong["time"]) == (None, NIGHT + 3650 * DAY)
    nights.poll(NIGHT)
    assert (database.meta.get(AWAITED_SINCE_KEY), database.meta.get(LAST_BACKUP_KEY)) == (NIGHT, wrong)
    nights.poll(NIGHT + DAY)
    assert database.meta.get(AWAITED_SINCE_KEY) is None
    assert database.meta.get(LAST_BACKUP_KEY)["time"] == NIGHT + DAY


def test_the_entry_of_version_0_1_0_that_awaits_a_backup_is_moved_to_its_own_key(
    database: Database, directory: BackupDirectory
) -> None:
    database.meta.set(LAST_BACKUP_KEY, {"time": NIGHT - 10 * HOUR})
    nights = Nights(database, directory)
    assert nights.poll(NIGHT - 1) == 0
    assert database.meta.get(LAST_BACKUP_KEY) is None
    assert database.meta.get(AWAITED_SINCE_KEY) == NIGHT - 10 * HOUR
    assert nights.poll(NIGHT) == 1


def test_the_last_backup_of_version_0_1_0_counts(database: Database, directory: BackupDirectory) -> None:
    make_backup(database, directory, NIGHT)  # version 0.1.0 recorded it in the same form
    nights = Nights(database, directory)
    assert nights.poll(NIGHT + HOUR) == 1
    assert nights.poll(NIGHT + DAY) == 2


def test_a_failed_backup_remains_failed_until_it_is_tried_again(
    database: Database, directory: BackupDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    nights = Nights(database, directory)
    nights.poll(NIGHT - 10 * HOUR)
    directory.path.parent.mkdir(exist_ok=True)
    directory.path.write_text("in the way")
    with pytest.raises(BackupFailed):
        nights.poll(NIGHT)
    directory.path.unlink()
    with pytest.raises(BackupFailed):  # no attempt yet
        nights.poll(NIGHT + 60)
    monkeypatch.setattr(background, "RETRY_SECONDS", 0.0)
    nights.job._retry_at = time.monotonic()
    assert nights.poll(NIGHT + 120) == 1


def test_while_another_backup_is_under_way_the_nightly_one_waits(
    database: Database, directory: BackupDirectory
) -> None:
    nights = Nights(database, directory)
    nights.poll(NIGHT - 10 * HOUR)
    with directory.new_backup(TONIGHT) as (copy, _backup):
        copy.write_bytes(b"")
        with pytest.raises(DatabaseBusy):
            nights.poll(NIGHT)
    assert nights.poll(NIGHT + 60) == 2


def test_an_error_while_the_collector_stops_is_no_failure(
    database: Database, directory: BackupDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    nights = Nights(database, directory)
    nights.poll(NIGHT - 10 * HOUR)

    def interrupted(*_: object) -> Contents:
        nights.stop.set()
        raise DatabaseError("interrupted")

    monkeypatch.setattr(creation, "verify", interrupted)
    assert nights.poll(NIGHT) == 0
    assert names(directory) == []
    monkeypatch.undo()
    assert Nights(database, directory).poll(NIGHT + HOUR) == 1  # the next start
