"""Make a database of a backup that can replace the one in use."""

from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

from collector.backups.files import sync_to_disk
from collector.backups.identity import HISTORY_KEY
from collector.backups.verification import Contents, read_contents, read_file_contents
from collector.database.connection import (
    check_integrity,
    connect_for_copy,
    connect_for_writing,
    connect_read_only,
    fetch,
    translate_sqlite_errors,
)
from collector.database.documented import DOCUMENTED_TABLES
from collector.database.migrations import migrate, refresh_views
from collector.errors import BackupFailed, NotABackup
from collector.schema import Table, View


def prepare_restore(
    backup: Path,
    target: Path,
    tables: Iterable[Table],
    views: Iterable[View],
    between_steps: Callable[[int, int], None] = lambda _done, _total: None,
) -> Contents:
    """Copy a backup into a new file, and migrate that to this version of the tables and views.

    Args:
        backup: a database of any version of the documentation.
        target: the new file; what a killed attempt left there is overwritten.
        tables: own tables beside the documented ones.
        views: views over all these tables.
        between_steps: called with the number of pages that are copied, and of all pages.

    Returns:
        The contents of the new file.

    Raises:
        NotABackup: the file is no database, or that of another program.
        DatabaseError: the backup cannot be read or is damaged, or the new file cannot be written.
    """
    _check_is_database(backup)
    for path in (target, target.with_name(f"{target.name}-journal")):
        path.unlink(missing_ok=True)
    with closing(connect_read_only(backup)) as source, translate_sqlite_errors(backup):
        check_integrity(source, backup)
        present = read_contents(lambda statement: fetch(source, statement))
        if not present.rows.keys() & {table.name for table in DOCUMENTED_TABLES}:
            raise NotABackup(f"{backup} is no backup: it has none of the collector's tables")
        with closing(connect_for_copy(target)) as copy:
            source.backup(
                copy, pages=1000, progress=lambda _status, left, total: between_steps(total - left, total)
            )
    with closing(connect_for_writing(target, is_own=False)) as connection, translate_sqlite_errors(target):
        list(migrate(connection, (*DOCUMENTED_TABLES, *tables)))
        list(refresh_views(connection, views))
        connection.execute("DELETE FROM metadata WHERE key = ?", (HISTORY_KEY,))  # a new one begins
    sync_to_disk(target)
    return read_file_contents(target)


def _check_is_database(backup: Path) -> None:
    """Check that a file begins as SQLite's files do; nothing else can be a backup.

    Raises:
        NotABackup: it does not.
        BackupFailed: it cannot be read.
    """
    try:
        with backup.open("rb") as file:  # no process has a backup open as its database
            beginning = file.read(len(_MAGIC))
    except OSError as error:
        raise BackupFailed(f"{backup} cannot be read: {error.strerror}") from error
    if beginning != _MAGIC:
        raise NotABackup(f"{backup} is no backup: it is no SQLite database")


_MAGIC = b"SQLite format 3\0"
