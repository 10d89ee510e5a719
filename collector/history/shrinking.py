"""Return the free pages of the database file to the file system, so that the file becomes smaller."""

import structlog

from collector.database import Database
from collector.database.space import read_space, release_pages, rewrite
from collector.history.steps import ShortSteps
from collector.schema import BYTES_PER_MB

RESERVE_BYTES = 4 * BYTES_PER_MB
"""Size of the free pages that remain in the file: new rows use them, and the file need not grow again."""

REWRITE_MAX_BYTES = 128 * BYTES_PER_MB
"""Content up to which a running collector rewrites a file: rows wait for less than a second."""

_REWRITE_MIN_BYTES = 16 * BYTES_PER_MB


class FileShrinking:
    """Returns free pages of the database file to the file system, in short transactions.

    SQLite can do that only in a file that was created with `auto_vacuum`, as the collector does. A file that
    another program created must be rewritten once.

    Args:
        database: whose file is to become smaller.
        limit_bytes: size that the file should not exceed; 0 for none.
        steps: run the transactions.
    """

    def __init__(self, database: Database, limit_bytes: int, steps: ShortSteps) -> None:
        self._database = database
        self._limit_bytes = limit_bytes
        self._steps = steps
        self._is_logged = False

    def run(self) -> None:
        """Return free pages beyond the reserve, and of the reserve what is beyond the limit.

        Example: a file of 90 MB has 30 MB of free pages. Without a limit it shrinks to 64 MB, of which 4 MB
        are free. With a limit of 62 MB it shrinks to 62 MB. With a limit of 50 MB it shrinks to its content,
        60 MB.

        Raises:
            Stopped: the collector is stopping.
            DatabaseBusy: another program holds a lock.
            DatabaseError: disk full, read-only, damaged.
        """
        if not read_space(self._database).can_shrink:
            self._rewrite_if_worthwhile()
        while (space := read_space(self._database)).can_shrink:
            beyond_limit = space.size_bytes - self._limit_bytes if self._limit_bytes else 0
            excess = max(space.free_bytes - RESERVE_BYTES, beyond_limit)
            if min(space.free_bytes, excess) <= 0:
                return
            self._steps.run(lambda: release_pages(self._database))
            if read_space(self._database).free_bytes >= space.free_bytes:
                return  # no page could be released: do not try for ever

    def _rewrite_if_worthwhile(self) -> None:
        """Rewrite a file that another program created, or log once how that can be done.

        It is worthwhile where the file exceeds its limit, or is mostly free and not small anyway. A file with
        much content is not rewritten here, because rows would wait for too long.
        """
        space = read_space(self._database)
        is_too_large = 0 < self._limit_bytes < space.size_bytes
        is_mostly_free = space.free_bytes > space.size_bytes / 2 and space.size_bytes > _REWRITE_MIN_BYTES
        if not (is_too_large or is_mostly_free):
            return
        if space.used_bytes <= REWRITE_MAX_BYTES:
            self._steps.run(lambda: rewrite(self._database))
        elif not self._is_logged:
            self._is_logged = True
            structlog.get_logger().warning(
                f"{space.free_bytes / BYTES_PER_MB:,.0f} MB of the database file are free and cannot be "
                "returned to the file system, because another program created the file: stop the collector "
                "once and run `llama-collector prune --vacuum`"
            )
