"""`restore`: replaces the database with a backup, and keeps the old database beside it."""

import argparse
import shutil
from contextlib import closing
from datetime import datetime
from pathlib import Path

from collector.backups.directory import BackupDirectory
from collector.backups.files import TIME_FORMAT, copy_mode, move_side_files, sync_to_disk
from collector.backups.identity import read_file_identity, read_host_id
from collector.backups.restoration import prepare_restore
from collector.backups.verification import read_file_contents
from collector.catalog import OWN_TABLES
from collector.database.connection import (
    check_integrity,
    connect_for_writing,
    connect_read_only,
    translate_sqlite_errors,
)
from collector.database.locks.collector_lock import CollectorLock
from collector.errors import (
    BackupFailed,
    DatabaseBusy,
    DatabaseDamaged,
    DatabaseError,
    DatabaseInUse,
    NotABackup,
)
from collector.schema import BYTES_PER_MB
from collector.settings import Settings, find_settings_file, load_settings
from collector.text import Progress, say
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
    """Check a backup, migrate a copy of it to this version, and replace the database with the copy.

    At every moment there is a complete database at the path: the old one or the new one.

    Args:
        settings: name the database.
        backup: the file, written by any version of the collector.

    Raises:
        DatabaseInUse: a collector runs.
        DatabaseBusy: another program holds a lock on the database.
        BackupFailed: there is no such file, it is no backup, or the database cannot be replaced.
        DatabaseError: the backup cannot be read or is damaged, or there is not enough space for it.
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
        _replace(path, backup)
    finally:
        lock.release()


def restore_latest(settings: Settings) -> None:
    """Restore the newest good backup; an older one only if the newer ones are certainly not good.

    A disk that is full at the moment, or a lock, says nothing about a backup: an older one must not go in
    because of it.

    Raises:
        BackupFailed: there is none.
        CollectorError: see `restore`; nothing was changed.
    """
    directory = BackupDirectory(settings.backup_directory, settings.database_path)
    for backup in reversed(_candidates(directory, settings.database_path)):
        try:
            return restore(settings, backup)
        except (DatabaseDamaged, NotABackup) as error:
            say(f"skipped: {error}", error=True)
    raise BackupFailed(f"{directory.path} contains no good backup")


def _candidates(directory: BackupDirectory, database: Path) -> list[Path]:
    """Return the backups that `--latest` may choose, the best one last.

    Those of the present database, if there are any. Otherwise, because it is lost or was begun anew, those of
    the history of this host that has the newest sample. Never those of another host.
    """
    host = read_host_id()
    identities = {path: read_file_identity(path) for path in directory.backups()}
    here = {path: one for path, one in identities.items() if None in (one.host, host) or one.host == host}
    present = read_file_identity(database).history if database.exists() else None
    own = {path: one for path, one in here.items() if one.may_belong_to(present)} if present else {}
    if not own and here:
        newest = max(here.values(), key=lambda one: one.newest_sample)
        own = {path: one for path, one in here.items() if one.may_belong_to(newest.history)}
    for path in (path for path, one in own.items() if one.inserted_rows < 0):
        say(f"skipped where a better one is found: {path} cannot be read", error=True)
    if len(own) < len(identities):
        say(
            f"{len(identities) - len(own)} backups of other databases are not considered: "
            "llama-collector restore --list shows all, and `restore FILE` takes any of them",
            error=True,
        )
    return sorted(own, key=lambda path: (own[path].inserted_rows, path.name))


def list_backups(settings: Settings) -> None:
    """Print a line about each backup: when it was started, its size, its rows, and whether it is good."""
    directory = BackupDirectory(settings.backup_directory, settings.database_path)
    backups = directory.backups()
    if not backups:
        say(f"no backup in {directory.path}")
    for backup in backups:
        size_mb = backup.stat().st_size / BYTES_PER_MB
        try:
            with closing(connect_read_only(backup)) as connection, translate_sqlite_errors(backup):
                check_integrity(connection, backup)
            verdict = f"good, {sum(read_file_contents(backup).rows.values()):>12,} rows"
        except DatabaseError as error:
            verdict = f"DAMAGED ({error})"
        say(f"{directory.begun_at(backup)}  {size_mb:>10,.1f} MB  {verdict}  {backup}")


def _replace(path: Path, backup: Path) -> None:
    """Replace the database with a migrated copy of a backup, and print where the old one is kept."""
    new = path.with_name(f".{path.name}.restoring")
    progress = Progress()

    def show_progress(done: int, total: int) -> None:
        progress.show(f"{100 * done // max(1, total)} % copied", last=done == total)

    try:
        rows = prepare_restore(backup, new, OWN_TABLES, VIEWS, show_progress).rows
        copy_mode(new, path if path.exists() else backup)
        kept = _keep_old(path) if path.exists() else None
        new.replace(path)
        sync_to_disk(path.parent)
    except OSError as error:
        raise BackupFailed(f"{error.filename or path}: {error.strerror}. Nothing was changed.") from error
    finally:
        new.unlink(missing_ok=True)
    say(f"{path} is now {backup}: {sum(rows.values()):,} rows")
    if kept:
        say(f"the old database is kept as {kept}: remove it when you no longer need it")


def _keep_old(path: Path) -> Path:
    """Add a second name (a hard link) to the old database, under which it remains when it is replaced.

    A file system without hard links, such as exFAT, gets a copy instead.

    A collector that was killed may have left a journal beside it. SQLite would apply that journal to any
    database at the old path, so it must not remain: opening the old database for writing rolls the
    interrupted transaction back and deletes the journal. A damaged database cannot be opened; its journal is
    renamed with it.

    Returns:
        The second path.
    """
    kept = path.with_name(f"{path.name}.before-restore-{datetime.now().strftime(TIME_FORMAT)}")  # noqa: DTZ005
    try:
        connect_for_writing(path).close()
    except DatabaseBusy:
        raise
    except DatabaseError:
        move_side_files(path, kept)
    try:
        kept.hardlink_to(path)
    except OSError:
        shutil.copy2(path, kept)
        sync_to_disk(kept)
    sync_to_disk(path.parent)
    return kept
