"""The directory of backups: their names, and how a new one comes into being."""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path

from collector.backups.files import TIME_FORMAT, copy_mode, copy_owner, drop_page_cache, sync_to_disk
from collector.errors import BackupFailed, DatabaseBusy
from collector.schema import BYTES_PER_MB

SPARE_BYTES = 16 * 2**20
"""Left free on the disk beside a backup, for what is collected meanwhile."""

_PARTIAL = ".partial"


class BackupDirectory:
    """Where the backups of one database lie.

    Args:
        directory: made where it is missing.
        database: path of the database.
    """

    def __init__(self, directory: Path, database: Path) -> None:
        self.directory = directory
        self._database = database
        pattern = rf"{re.escape(database.stem)}-\d{{8}}-\d{{6}}{re.escape(database.suffix)}"
        self._pattern = re.compile(pattern)

    def backups(self) -> list[Path]:
        """The finished backups, the oldest first."""
        with suppress(FileNotFoundError):
            return sorted(path for path in self.directory.iterdir() if self._pattern.fullmatch(path.name))
        return []

    def taken_at(self, backup: Path) -> datetime:
        """Local time at which a backup was begun, from its name."""
        return datetime.strptime(backup.stem[-15:], TIME_FORMAT)  # noqa: DTZ007 - names are in local time

    @contextmanager
    def new_backup(self, now: datetime) -> Iterator[tuple[Path, Path]]:
        """Gives a path to be filled, and that of the backup that it becomes where the block ends well.

        Args:
            now: local time, for its name.

        Raises:
            BackupFailed: the directory cannot be written, or is full.
            DatabaseBusy: another backup is under way.
        """
        with self._reserved():
            self._require_space()
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
            sync_to_disk(self.directory)

    @contextmanager
    def trial(self, backup: Path) -> Iterator[Path]:
        """Gives the path of a file beside a backup that is removed at the end.

        Raises:
            BackupFailed: the directory cannot be written, or is full.
            DatabaseBusy: a backup is under way.
        """
        with self._reserved():
            self._require_space()
            try:
                yield backup.with_name(f".{backup.name}.trial{_PARTIAL}")
            finally:
                self._remove_partial()

    def remove_old(self, keep: int, new: Path) -> None:
        """Remove all but the newest; the new one stays, also where a wrong clock gave others later names."""
        others = [path for path in self.backups() if path != new]
        for path in others[: max(0, len(others) + 1 - keep)]:
            path.unlink(missing_ok=True)

    @contextmanager
    def _reserved(self) -> Iterator[None]:
        """No other backup is under way meanwhile; what a killed one left is removed."""
        try:
            self._make_directory()
            descriptor = os.open(self.directory, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise BackupFailed(
                f"{self.directory} cannot be used: {error.strerror}. Mend it, or [backup] directory"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._remove_partial()
            yield
        except BlockingIOError as error:
            raise DatabaseBusy("another backup is under way: wait until it has ended") from error
        except OSError as error:
            raise BackupFailed(f"{error.filename or self.directory}: {error.strerror}") from error
        finally:
            os.close(descriptor)

    def _make_directory(self) -> None:
        """Root makes it for the owner of the database, whose collector is to write it."""
        if not self.directory.exists():
            self.directory.mkdir(parents=True)
            copy_owner(self.directory, self._database.parent)

    def _remove_partial(self) -> None:
        for left in self.directory.iterdir():
            if left.name.startswith(f".{self._database.stem}-") and _PARTIAL in left.name:
                left.unlink(missing_ok=True)

    def _require_space(self) -> None:
        needed = self._database.stat().st_size + SPARE_BYTES
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            raise BackupFailed(
                f"{self.directory} has {free / BYTES_PER_MB:,.0f} MB free and a backup needs "
                f"{needed / BYTES_PER_MB:,.0f} MB: free some space, lower [backup] keep, or name another "
                "[backup] directory"
            )

    def _free_path(self, now: datetime) -> Path:
        while True:  # the hour that autumn's clock shows twice gives some names twice
            name = f"{self._database.stem}-{now.strftime(TIME_FORMAT)}{self._database.suffix}"
            if not (path := self.directory / name).exists():
                return path
            now += timedelta(seconds=1)
