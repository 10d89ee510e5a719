"""Which files are never read as logs, whatever is configured and whatever links lead there."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from collector.errors import SourceFailed
from collector.logs.position import Identity, identity_of

OwnFiles = Callable[[], Iterable[Path]]
"""Returns the paths of the collector's own files and of its secrets."""


class FileGuard:
    """Refuses the collector's own files, and links that their owner may not have made.

    Whoever may write the directory of the logs could put a link to the API key there, which would become rows
    of `logs`; or one to the database: closing it in this process would drop SQLite's locks.

    Args:
        own_files: see `OwnFiles`. They are compared by device and inode: a hard link has another name.
    """

    def __init__(self, own_files: OwnFiles = tuple) -> None:
        self._own_files = own_files

    def is_own(self, identity: Identity) -> bool:
        """Return whether a file is one of the collector's own."""
        for path in self._own_files():
            try:
                if identity_of(path.stat()) == identity:
                    return True
            except OSError:
                continue
        return False

    def check(self, path: Path) -> None:
        """Check that a path may be read as a log.

        Raises:
            FileNotFoundError: there is no file.
            SourceFailed: it may not; the message says why, and what to do.
        """
        target = path.stat()
        if self.is_own(identity_of(target)):
            raise SourceFailed(f"{path} is a file of the collector itself: remove it from [logs] files")
        if path.is_symlink():
            owner = path.lstat().st_uid
            if owner not in (0, target.st_uid, os.geteuid()):
                raise SourceFailed(
                    f"{path} is a link of user {owner} to a file of user {target.st_uid}, and is not "
                    "followed: name the file itself in [logs] files"
                )
