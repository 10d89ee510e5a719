"""Owners of files that root creates beside a database that another user writes."""

import os
from contextlib import suppress
from pathlib import Path


def match_owner(path: Path) -> None:
    """Give a file that root has just created to the owner and group of its directory.

    Example: root runs `scan` before the service has ever started. Lock and database would belong to root, and
    the service, which runs as its own user, could not start. A link is never followed. Any other user's files
    belong to that user anyway.
    """
    if os.geteuid() != 0:
        return
    directory = path.parent.stat()
    with suppress(OSError):  # a file system without owners, such as vfat
        os.chown(path, directory.st_uid, directory.st_gid, follow_symlinks=False)
