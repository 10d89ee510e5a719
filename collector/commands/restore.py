"""`restore`: puts a backup in the place of the database, which is kept beside it."""

import argparse
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import datetime
from pathlib import Path

from collector.backups.directory import BackupDirectory
from collector.backups.files import copy_mode, move_side_files, sync_to_disk
from collector.backups.restoration import prepare_restore
from collector.backups.verification import read_file_contents
from collector.catalog import OWN_TABLES
from collector.commands.progress import Progress
from collector.database.collector_lock import CollectorLock
from collector.database.connection import (
    check_integrity,
    connect_for_writing,
    connect_read_only,
    translate_sqlite_errors,
)
from collector.errors import BackupFailed, CollectorError, DatabaseBusy, DatabaseError, DatabaseInUse
from collector.schema import BYTES_PER_MB
from collector.settings import Settings, find_settings_file, load_settings
from collector.views import VIEWS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `restore`."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("file", type=Path, nargs="?", metavar="FILE", help="the backup")
    which.add_argument("--latest", action="store_true", help="the newest good backup")
    which.add_argument("--list", action="store_true", help="only list the backups, and which are good")


def run(options: argparse.Namespace) -> int:
    """Restore a backup, or list the backups."""
    settings = load_settings(find_settings_file(options.config))
    if options.list:
        list_backups(settings)
    elif options.latest:
        restore_latest(settings)
    else:
        restore(settings, options.file)
    return 0


def restore(settings: Settings, backup: Path) -> None:
    """Check a backup, bring it up to date, and put it in the place of the database.

    At every instant there is a whole database in its place: the old one or the new one.

    Args:
        settings: name the database.
        backup: a database of any version of the documentation.

    Raises:
        DatabaseInUse: a collector runs.
        DatabaseBusy: another program holds a lock on the database.
        BackupFailed: the backup is none.
        DatabaseError: the backup cannot be read, or is damaged, or there is no room for it.
    """
    path = settings.database_path.resolve()
    if not backup.is_file():
        raise BackupFailed(f"there is no file {backup}: llama-collector restore --list shows the backups")
    lock = CollectorLock(path)
    try:
        lock.acquire()
    except DatabaseInUse as error:
        raise DatabaseInUse(f"{error} Nothing was changed.") from error
    try:
        _restore(path, backup)
    finally:
        lock.release()


def restore_latest(settings: Settings) -> None:
    """Restore the newest backup that is good.

    Raises:
        BackupFailed: there is none.
        CollectorError: see `restore`.
    """
    place = _place(settings)
    for backup in reversed(place.backups()):
        try:
            return restore(settings, backup)
        except DatabaseInUse:
            raise
        except CollectorError as error:
            print(f"left out: {error}", file=sys.stderr)
    raise BackupFailed(f"{place.directory} holds no good backup")


def list_backups(settings: Settings) -> None:
    """Print each backup: when it was begun, its size, its rows, and whether it is good."""
    place = _place(settings)
    backups = place.backups()
    if not backups:
        print(f"no backup in {place.directory}")
    for backup in backups:
        size_mb = backup.stat().st_size / BYTES_PER_MB
        print(f"{place.taken_at(backup)}  {size_mb:>10,.1f} MB  {_verdict(backup)}  {backup}", flush=True)


def _place(settings: Settings) -> BackupDirectory:
    return BackupDirectory(settings.backup_directory, settings.database_path)


def _verdict(backup: Path) -> str:
    try:
        with closing(connect_read_only(backup)) as connection, translate_sqlite_errors(backup):
            check_integrity(connection, backup)
        return f"good, {sum(read_file_contents(backup).rows.values()):>12,} rows"
    except DatabaseError as error:
        return f"DAMAGED ({error})"


def _restore(path: Path, backup: Path) -> None:
    new = path.with_name(f".{path.name}.restoring")
    try:
        rows = prepare_restore(backup, new, OWN_TABLES, VIEWS, _telling(Progress())).rows
        copy_mode(new, path if path.exists() else backup)
        kept = _keep_old(path) if path.exists() else None
        new.replace(path)
        sync_to_disk(path.parent)
    except OSError as error:
        raise BackupFailed(f"{error.filename or path}: {error.strerror}. Nothing was changed.") from error
    finally:
        with suppress(FileNotFoundError):
            new.unlink()
    print(f"{path} is now {backup}: {sum(rows.values()):,} rows")
    if kept:
        print(f"what was there is kept as {kept}: remove it when all is well")


def _keep_old(path: Path) -> Path:
    """Give the old database a second name."""
    kept = path.with_name(f"{path.name}.before-restore-{datetime.now():%Y%m%d-%H%M%S}")  # noqa: DTZ005 - for people
    try:
        connect_for_writing(path).close()  # ends what a crash has left open
    except DatabaseBusy:
        raise
    except DatabaseError:  # damaged: then its journal is kept with it
        move_side_files(path, kept)
    kept.hardlink_to(path)
    sync_to_disk(path.parent)
    return kept


def _telling(progress: Progress) -> Callable[[int, int], None]:
    def tell(done: int, total: int) -> None:
        progress.show(f"{100 * done // max(1, total)} % copied", last=done == total)

    return tell
