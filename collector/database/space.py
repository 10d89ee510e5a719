"""The space that the database file uses on the disk: read it, and return free pages to the file system."""

import shutil
from dataclasses import dataclass

from collector.database.repositories.base import Connected
from collector.errors import DatabaseBusy, DatabaseError
from collector.schema import BYTES_PER_MB

RELEASE_PAGES = 200
"""Pages returned to the file system in one transaction: about 10 ms."""

SPARE_BYTES = 16 * 2**20
"""Disk space that must remain free beside a rewrite, for the rows that are collected meanwhile."""


@dataclass(frozen=True, slots=True)
class Space:
    """How the pages of the database file are used.

    Args:
        size_bytes: size of the file.
        free_bytes: size of the pages that are free.
        page_bytes: size of one page.
        can_shrink: whether free pages can be returned to the file system without rewriting the file.
    """

    size_bytes: int
    free_bytes: int
    page_bytes: int
    can_shrink: bool

    @property
    def used_bytes(self) -> int:
        """Size of the pages that are not free."""
        return self.size_bytes - self.free_bytes


def read_space(database: Connected) -> Space:
    """Return how the pages of the database file are used."""

    def pragma(name: str) -> int:
        return int(database.query(f"PRAGMA {name}")[0][name])

    page_bytes = pragma("page_size")
    return Space(
        pragma("page_count") * page_bytes,
        pragma("freelist_count") * page_bytes,
        page_bytes,
        can_shrink=pragma("auto_vacuum") != 0,
    )


def release_pages(database: Connected) -> None:
    """Return `RELEASE_PAGES` free pages to the file system in one short transaction.

    Raises:
        DatabaseBusy: another program holds a lock.
        DatabaseError: disk full, read-only, damaged.
    """
    # The pragma releases one page per step of the statement. `execute` stops after the first step, because
    # the statement returns no rows; `executescript` runs all steps.
    database.run_script(f"PRAGMA incremental_vacuum({RELEASE_PAGES})")


def rewrite(database: Connected) -> None:
    """Rewrite the whole file without free pages, so that it can shrink in short transactions afterwards.

    Nobody can write meanwhile: about 6 s per GB of content.

    Raises:
        DatabaseBusy: another program holds a lock.
        DatabaseError: there is not enough space on the disk.
    """
    space = read_space(database)
    needed = space.size_bytes + space.used_bytes + SPARE_BYTES  # its journal and its new content
    free = shutil.disk_usage(database.path.parent).free
    if free < needed:
        raise DatabaseError(
            f"{database.path.parent} has {free / BYTES_PER_MB:,.0f} MB free, and rewriting the database "
            f"needs {needed / BYTES_PER_MB:,.0f} MB for a while: free some space"
        )
    try:
        # The temporary copy must be a file: otherwise it needs as much memory as the database has content.
        database.run_script("PRAGMA temp_store = FILE; PRAGMA auto_vacuum = INCREMENTAL; VACUUM")
    except DatabaseBusy:
        raise
    except DatabaseError as error:
        raise DatabaseError(
            f"{error} The rewrite also needs {space.used_bytes / BYTES_PER_MB:,.0f} MB in the directory for "
            "temporary files: /var/tmp, or that which the variable SQLITE_TMPDIR names"
        ) from error
    finally:
        database.run_script("PRAGMA temp_store = MEMORY")
