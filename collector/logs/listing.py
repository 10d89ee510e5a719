"""The files at one path and beside it, and which of them belongs to a stored position."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from collector.errors import SourceFailed
from collector.logs.position import FilePosition, Identity, identity_of
from collector.logs.rotation import (
    MULTILOG_CURRENT,
    is_compressed,
    is_rotated,
    rotated_after,
    rotated_between,
)
from collector.logs.tail import Tail

COPY_TOLERANCE_SECONDS = 1.0
"""A copy may seem this much older than the reading that came before it: clocks of files are coarse."""


class OtherLogs(Protocol):
    """What one log must know about all others, and about files that are no logs."""

    def is_followed(self, identity: Identity) -> bool:
        """Return whether a file is read already, or must not be read."""

    def is_log(self, path: Path) -> bool:
        """Return whether a path is that of a log of its own, and not of a rotated file of another one."""

    def check(self, path: Path) -> None:
        """Check that the file at a path may be read.

        Raises:
            SourceFailed: it may not.
        """


class FileListing:
    """The files at a path and beside it, as they were at one moment.

    A rotation may rename them at any time. Example: `llama.log.1` is in the listing, is renamed to
    `llama.log.2`, and what is then opened as `llama.log.1` is another file. Therefore the caller must check
    `is_current` after it has opened files by their names, and leave everything to the next poll if it is
    false.

    Args:
        path: where llama-server writes.
        others: knows the other logs.
    """

    def __init__(self, path: Path, others: OtherLogs) -> None:
        self._path = path
        self._others = others
        self._statuses = _stat_files(path, others)

    @property
    def has_current_file(self) -> bool:
        """Whether there is a file at the path itself."""
        return self._path in self._statuses

    def is_current(self) -> bool:
        """Return whether each name still belongs to the same file."""
        now = _stat_files(self._path, self._others)
        return {path: identity_of(status) for path, status in now.items()} == {
            path: identity_of(status) for path, status in self._statuses.items()
        }

    def find(self, position: FilePosition) -> Tail | None:
        """Open the file of a stored position, under the name to which it was renamed or copied.

        Returns:
            the file at the position; None if no file contains what was read up to there.

        Raises:
            OSError: the file with this inode cannot be opened.
            SourceFailed: it is not a regular file.
        """
        for path, status in self._statuses.items():
            is_candidate = status.st_ino == position.inode and not self._others.is_followed(
                identity_of(status)
            )
            # The inode may have been given to another file meanwhile: `resume` compares the content.
            if is_candidate and (tail := Tail.resume(path, position)):
                return tail
        return self.find_copy(position)

    def find_copy(self, position: FilePosition) -> Tail | None:
        """Open a file of any inode that contains what was read up to a position.

        Example: copytruncate copies `llama.log` to `llama.log.1` and truncates `llama.log`. Lines that were
        written after the last poll and before the copy are only in `llama.log.1`, behind the position.

        A file that was last changed before the position was stored is not a copy but another run with the
        same content.
        """
        if position.offset == 0:
            return None
        for path, status in self._statuses.items():
            is_older = status.st_ctime < position.read_at - COPY_TOLERANCE_SECONDS
            if is_older or status.st_size < position.offset or self._others.is_followed(identity_of(status)):
                continue
            with suppress(OSError, SourceFailed):  # deleted meanwhile, or not readable: not a copy for us
                if tail := Tail.resume(path, position):
                    return tail
        return None

    def rotated_after(self, position: FilePosition) -> list[Path]:
        """Return rotated files that nobody reads yet, written after the file of a position, oldest first."""
        return self._unfollowed(rotated_after(self._path, self._statuses, position))

    def rotated_between(self, before: FilePosition, position: FilePosition) -> list[Path]:
        """Return rotated files that nobody reads yet, written between the files of two positions."""
        return self._unfollowed(rotated_between(self._path, self._statuses, before, position))

    def _unfollowed(self, paths: list[Path]) -> list[Path]:
        """Return those of some paths whose files nobody reads yet."""
        return [path for path in paths if not self._others.is_followed(identity_of(self._statuses[path]))]


def _stat_files(path: Path, others: OtherLogs) -> dict[Path, os.stat_result]:
    """Return the status of the file at a path, if there is one, and of what may be rotations of it.

    Those are the files with a longer name, and those whose name a rotation may have given them. Links are
    left out: no rotation makes one, and it may lead anywhere.
    """
    statuses = {}
    with suppress(OSError):
        statuses[path] = path.stat()
    with suppress(OSError), os.scandir(path.parent) as entries:
        # A fast check first: there may be a thousand other files.
        beginning = "@" if path.name == MULTILOG_CURRENT else path.stem
        names = sorted(
            entry.name for entry in entries if entry.name.startswith(beginning) and not entry.is_symlink()
        )
        for name in names:
            candidate = path.parent / name
            is_candidate = name.startswith(path.name) or is_rotated(path, candidate)
            if not is_candidate or candidate == path or is_compressed(candidate) or others.is_log(candidate):
                continue
            with suppress(OSError):
                statuses[candidate] = candidate.stat()
    return statuses
