"""`backup`: makes a backup now, also while a collector runs."""

import argparse
import threading

from collector.backups.creation import back_up, back_up_beside_collector
from collector.backups.directory import BackupDirectory
from collector.catalog import open_database
from collector.errors import DatabaseError, DatabaseInUse
from collector.schema import BYTES_PER_MB
from collector.settings import Settings, find_settings_file, load_settings
from collector.text import say


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """Declare no arguments."""


def run(options: argparse.Namespace) -> int:
    """Back up the database that the settings name."""
    back_up_now(load_settings(find_settings_file(options.config)))
    return 0


def back_up_now(settings: Settings) -> None:
    """Make a backup and print a line about it.

    Raises:
        BackupFailed: there is not enough space, or the copy is incomplete; older backups remain.
        DatabaseError: there is no database, it cannot be read, or it is damaged.
    """
    path, keep = settings.database_path, settings.backup.keep
    if not path.exists():
        raise DatabaseError(f"there is no database at {path}: nothing to back up")
    directory = BackupDirectory(settings.backup_directory, path)
    try:
        database = open_database(path)
    except DatabaseInUse:
        summary = back_up_beside_collector(path, directory, keep)
    else:
        with database:
            summary = back_up(database, directory, keep, threading.Event())
    size_mb = summary.bytes / BYTES_PER_MB
    say(f"{summary.file}: {size_mb:,.1f} MB, {summary.rows:,} rows, {summary.seconds:.1f} s")
