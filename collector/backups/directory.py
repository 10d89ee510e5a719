"""The directory of backups: their names, and how a backup is created and deleted there."""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path

from collector.backups.files import TIME_FORMAT, copy_mode, copy_owner, drop_page_cache, sync_to_disk
from collector.backups.identity import read_file_identity
from collector.errors import BackupFailed, DatabaseBusy
from collector.schema import BYTES_PER_MB

SPARE_BYTES = 16 * 2**20
"""Disk space that must remain free beside a new backup, for the rows that are collected meanwhile."""

_PARTIAL = ".partial"


class BackupDirectory:
    """The backups of one database.

    A complete backup is named after the database and the local time at which it was started, for example
    `llama-dashboard-20261103-020000.db`. An incomplete file has the name of its backup with a dot before and
    `.partial` after it. A process that is killed leaves such a file; the next backup deletes it.

    Args:
        path: of the directory; it is created where it is missing.
        database: path of the database.
    """

    def __init__(self, path: Path, database: Path) -> None:
        self.path = path
        self._database = database
        pattern = rf"{re.escape(database.stem)}-\d{{8}}-\d{{6}}{re.escape(database.suffix)}"
        self._pattern = re.compile(pattern)

    def backups(self) -> list[Path]:
        """Return the complete backups, the oldest first."""
        with suppress(FileNotFoundError):
            return sorted(path for path in self.path.iterdir() if self._pattern.fullmatch(path.name))
        return []

    def of_history(self, history: str | None) -> list[Path]:
        """Return the complete backups that may belong to a history, the one with the most rows last.

        Args:
            history: its id; None if it is not known.
        """
        identities = {path: read_file_identity(path) for path in self.backups()}
        own = [path for path, identity in identities.items() if identity.may_belong_to(history)]
        return sorted(own, key=lambda path: (identities[path].inserted_rows, path.name))

    def begun_at(self, backup: Path) -> datetime:
        """Return the local time at which a backup was started, from its name."""
        return datetime.strptime(backup.stem[-15:], TIME_FORMAT)  # noqa: DTZ007 - names are in local time

    @contextmanager
    def new_backup(self, now: datetime) -> Iterator[tuple[Path, Path]]:
        """Provide the path of an incomplete file, and the path to which it is renamed at the end.

        It is renamed only where the block ends without an error; otherwise it is deleted.

        Args:
            now: local time, for the name.

        Raises:
            BackupFailed: the directory cannot be written, or is full.
            DatabaseBusy: another backup is under way.
        """
        with self._locked():
            self._check_space()
            path = self._free_path(now)
            partial = path.with_name(f".{path.name}{_PARTIAL}")
            try:
                yield partial, path
                copy_mode(partial, self._database)
                sync_to_disk(partial)
                drop_page_cache(partial)
                partial.rename(path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
            sync_to_disk(self.path)

    @contextmanager
    def trial_file(self, backup: Path) -> Iterator[Path]:
        """Provide the path of a file beside a backup for a trial restore; it is deleted at the end.

        Raises:
            BackupFailed: the directory cannot be written, or is full.
            DatabaseBusy: a backup is under way.
        """
        with self._locked():
            self._check_space()
            try:
                yield backup.with_name(f".{backup.name}.trial{_PARTIAL}")
            finally:
                self._remove_partial()

    def remove_old(self, keep: int, new: Path) -> None:
        """Delete all but the newest backups of a history; those of others stay.

        Example: the database is lost, and the collector begins a new one. Its backups must not replace those
        of the lost one night by night.

        Args:
            keep: number of backups that remain.
            new: the backup that was just made. It always remains.
        """
        others = [path for path in self.of_history(read_file_identity(new).history) if path != new]
        for path in others[: max(0, len(others) + 1 - keep)]:
            path.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Exclude every other backup and trial restore, and delete what a killed one left."""
        try:
            if not self.path.exists():
                self.path.mkdir(parents=True)
                # Where root makes the first backup, the collector's user must be able to write the next one.
                copy_owner(self.path, self._database.parent)
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise BackupFailed(
                f"{self.path} cannot be used: {error.strerror}. Fix it, or change [backup] directory"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._remove_partial()
            yield
        except BlockingIOError as error:
            raise DatabaseBusy("another backup is under way: wait until it has ended") from error
        except OSError as error:
            raise BackupFailed(f"{error.filename or self.path}: {error.strerror}") from error
        finally:
            os.close(descriptor)

    def _remove_partial(self) -> None:
        """Delete the incomplete files of this database."""
        for path in self.path.iterdir():
            if path.name.startswith(f".{self._database.stem}-") and _PARTIAL in path.name:
                path.unlink(missing_ok=True)

    def _check_space(self) -> None:
        """Raise `BackupFailed` if there is not enough space for another copy of the database."""
        needed = self._database.stat().st_size + SPARE_BYTES
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise BackupFailed(
                f"{self.path} has {free / BYTES_PER_MB:,.0f} MB free and a backup needs "
                f"{needed / BYTES_PER_MB:,.0f} MB: free some space, lower [backup] keep, or name another "
                "[backup] directory"
            )

    def _free_path(self, now: datetime) -> Path:
        """Return an unused path for a backup.

        A name can be in use where two backups start in one second, or in the hour that is repeated when
        daylight saving time ends: then seconds are added to the time.
        """
        while True:
            name = f"{self._database.stem}-{now.strftime(TIME_FORMAT)}{self._database.suffix}"
            if not (path := self.path / name).exists():
                return path
            now += timedelta(seconds=1)
