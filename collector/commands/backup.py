"""`backup`: a backup now, also while a collector runs."""

import argparse
import threading
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path

from collector.backups.directory import BackupDirectory
from collector.backups.nightly import BackupSummary, back_up, described
from collector.backups.verification import read_contents, verify
from collector.catalog import open_database
from collector.database.connection import connect_for_copy, connect_read_only, fetch, translate_sqlite_errors
from collector.errors import DatabaseError, DatabaseInUse
from collector.settings import Settings, find_settings_file, load_settings


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """Declare no arguments."""


def run(options: argparse.Namespace) -> int:
    """Back up the database that the settings name."""
    back_up_now(load_settings(find_settings_file(options.config)))
    return 0


def back_up_now(settings: Settings) -> None:
    """Make a backup and print what it is.

    Raises:
        BackupFailed: there is no room for it, or it is not whole; the older ones stay.
        DatabaseError: there is no database, or it cannot be read, or is damaged.
    """
    path = settings.database_path
    if not path.exists():
        raise DatabaseError(f"there is no database at {path}: nothing to back up")
    place, keep = BackupDirectory(settings.backup_directory, path), settings.backup.keep
    try:
        database = open_database(path)
    except DatabaseInUse:
        summary = _beside_collector(place, settings)
        place.remove_old(keep, Path(summary.file))
    else:
        with database:
            summary = back_up(database, place, keep, threading.Event())
    print(described(summary))


def _beside_collector(place: BackupDirectory, settings: Settings) -> BackupSummary:
    """In one read transaction: the collector's rows wait in its memory meanwhile, a few seconds a GB."""
    begun, started = time.time(), time.monotonic()
    path = settings.database_path
    with (
        place.new_backup(datetime.fromtimestamp(begun)) as (copy, backup),  # noqa: DTZ006
        closing(connect_read_only(path)) as source,
    ):
        connect_for_copy(copy).close()  # for its owner alone until it is done
        with translate_sqlite_errors(path):
            before = read_contents(lambda statement: fetch(source, statement))
            source.execute("VACUUM INTO ?", (str(copy),))
        copied = verify(copy, before, lambda statement: fetch(source, statement), lambda: False)
    rows = sum(copied.rows.values())
    return BackupSummary(begun, str(backup), backup.stat().st_size, rows, time.monotonic() - started)
