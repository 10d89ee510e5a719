"""File operations of backups and restores: fsync, modes, owners, and moving a database aside."""

import os
from contextlib import suppress
from datetime import datetime
from pathlib import Path

TIME_FORMAT = "%Y%m%d-%H%M%S"
"""Format of the local time in the names of files."""


def move_aside(path: Path) -> Path:
    """Rename a damaged database together with its journal.

    Returns:
        The new path.
    """
    kept = path.with_name(f"{path.name}.damaged-{datetime.now().strftime(TIME_FORMAT)}")  # noqa: DTZ005
    move_side_files(path, kept)
    path.rename(kept)
    sync_to_disk(path.parent)
    return kept


def move_side_files(database: Path, kept: Path) -> None:
    """Rename the files that SQLite left beside a database, so that they follow the database's new name."""
    for suffix in ("-journal", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            database.with_name(database.name + suffix).rename(kept.with_name(kept.name + suffix))


def sync_to_disk(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def drop_page_cache(path: Path) -> None:
    """Remove a file from the kernel's page cache: models and the database are read sooner than a backup."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def copy_mode(path: Path, like: Path) -> None:
    """Set a file's mode to that of another file, and its owner and group where that is permitted."""
    copy_owner(path, like)
    path.chmod(like.stat().st_mode & 0o777)


def copy_owner(path: Path, like: Path) -> None:
    """Set the owner and group of a file or directory to those of another one, where that is permitted."""
    status = like.stat()
    with suppress(PermissionError):  # only root can change the owner; for another user it is mostly the same
        os.chown(path, status.st_uid, status.st_gid)
