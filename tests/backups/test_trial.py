import threading
from functools import partial

import pytest

from collector.backups.directory import BackupDirectory
from collector.backups.identity import HOST_KEY
from collector.backups.restoration import prepare_restore
from collector.backups.trial import LAST_TEST_KEY, TrialRestore
from collector.catalog import OWN_TABLES
from collector.database import Database
from collector.errors import DatabaseDamaged
from collector.views import VIEWS
from tests.support.backups import DAY, NIGHT, make_backup, names
from tests.support.damage import damage


def trial_restore(database: Database, directory: BackupDirectory, now: float) -> TrialRestore:
    restore = partial(prepare_restore, tables=OWN_TABLES, views=VIEWS)
    return TrialRestore(database, directory, 30, restore, threading.Event(), lambda: now)


def test_the_newest_backup_is_restored_on_trial_once_a_month(
    database: Database, directory: BackupDirectory
) -> None:
    trial_restore(database, directory, NIGHT).run()
    assert database.meta.get(LAST_TEST_KEY) is None  # there is no backup yet
    path = make_backup(database, directory)
    trial_restore(database, directory, NIGHT + DAY).run()
    stored = database.meta.get(LAST_TEST_KEY)
    assert (stored["verdict"], stored["file"], stored["time"]) == ("ok", str(path), NIGHT + DAY)
    assert stored["rows"] == sum(
        database.query(f"SELECT count(*) AS n FROM {name}")[0]["n"]
        for name in ("metrics", "models", "logs", "server_config")
    ) + len({HOST_KEY} & {row["key"] for row in database.query("SELECT key FROM metadata")})
    assert names(directory) == [path.name]
    trial_restore(database, directory, NIGHT + 30 * DAY).run()
    assert database.meta.get(LAST_TEST_KEY)["time"] == NIGHT + DAY
    trial_restore(database, directory, NIGHT + 32 * DAY).run()
    assert database.meta.get(LAST_TEST_KEY)["time"] == NIGHT + 32 * DAY


def test_a_backup_that_cannot_be_restored_is_reported_until_there_is_a_good_one(
    database: Database, directory: BackupDirectory
) -> None:
    path = make_backup(database, directory)
    damage(path)
    for _ in range(2):  # it remains due
        with pytest.raises(DatabaseDamaged):
            trial_restore(database, directory, NIGHT + DAY).run()
    assert path.name in database.meta.get(LAST_TEST_KEY)["verdict"]
    assert names(directory) == [path.name]
    good = make_backup(database, directory, NIGHT + 2 * DAY)
    trial_restore(database, directory, NIGHT + 2 * DAY).run()
    assert database.meta.get(LAST_TEST_KEY)["file"] == str(good)


def test_the_files_that_a_killed_trial_restore_left_are_deleted_by_the_next_backup(
    database: Database, directory: BackupDirectory
) -> None:
    path = make_backup(database, directory)
    with directory.trial_file(path) as left:
        pass
    left.write_bytes(b"half")
    left.with_name(f"{left.name}-journal").write_bytes(b"half")
    newer = make_backup(database, directory, NIGHT + DAY)
    assert names(directory) == [path.name, newer.name]
