"""Keeps the database within its limits: the oldest rows go, and the file becomes smaller."""

import math
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import structlog

from collector.database import Database
from collector.database import deletion as rows
from collector.database.deletion import Boundary, Space
from collector.database.documented import DOCUMENTED_TABLES
from collector.errors import DatabaseBusy, DatabaseError, Stopped
from collector.schema import BYTES_PER_MB, Table
from collector.settings import RetentionSettings

LAST_ROWS = 1000
"""Of each table; they never go because of the file's size."""

RESERVE_BYTES = 4 * BYTES_PER_MB
"""Free pages that stay in the file: new rows take them, and the file need not grow again."""

REWRITE_MAX_BYTES = 128 * BYTES_PER_MB
"""A collector that runs rewrites a file of this much content: rows wait for less than a second."""

_REWRITE_MIN_BYTES = 16 * BYTES_PER_MB
_SHORTEST_REST_SECONDS = 0.01
_BUSY_PATIENCE = 10  # seconds
_SECONDS_PER_DAY = 86_400
_SIZE_MARGIN = 0.05  # of the limit is left to the rows of the time until the next run
_SMALLEST_SHARE = 0.005

_SAMPLES = ("metrics", "host_metrics")
"""These have one row a sample. Where there are several, they stay as long as these."""

_COUNTED = (*_SAMPLES, "model_events", "logs")
"""Tables whose rows are counted."""

Result = TypeVar("Result")
Progress = Callable[[int], object]
"""Told how many rows have been deleted so far."""


def _silent(_deleted: int) -> None:
    pass


@dataclass(frozen=True, slots=True)
class PruneSummary:
    """What a run has done.

    Args:
        deleted: rows deleted, by table; tables that lost none are left out.
        size_before_bytes: of the file.
        size_after_bytes: of the file.
    """

    deleted: dict[str, int]
    size_before_bytes: int
    size_after_bytes: int


class Prune:
    """Deletes the oldest rows beyond the limits, while all else goes on.

    Every step is a short transaction, and the connection is free between two of them.

    Args:
        database: to be kept within its limits.
        tables: all that are ours beside the documented ones; those with a `timestamp` are pruned.
        settings: the limits.
        stop: ends a run early; what is not done is done by the next one.
        clock: gives Unix seconds.
    """

    def __init__(
        self,
        database: Database,
        tables: Iterable[Table],
        settings: RetentionSettings,
        stop: threading.Event,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._tables = [table.name for table in (*DOCUMENTED_TABLES, *tables) if _has_time(table)]
        self._settings = settings
        self._stop = stop
        self._clock = clock
        self._is_told = False
        self._progress: Progress = _silent
        self._deleted: dict[str, int] = {}
        self._rows: dict[str, int] = {}  # of each table, once they were counted in this run

    def run(self, progress: Progress = _silent) -> PruneSummary:
        """Prune once.

        Args:
            progress: told after each transaction.

        Raises:
            DatabaseBusy: another program holds a lock; what was done stays done.
            DatabaseError: disk full, read-only, damaged, or the size wanted cannot be reached.
        """
        self._progress, self._deleted, self._rows = progress, {}, {}
        size_bytes = self._space().size_bytes
        with suppress(Stopped):  # the next run goes on
            self._prune()
        return PruneSummary(self._deleted, size_bytes, self._space().size_bytes)

    def _prune(self) -> None:
        self._by_age()
        self._by_rows()
        is_small_enough = self._by_size()
        for table in self._deleted:
            self._step(lambda table=table: rows.analyze(self._database, table))  # type: ignore[misc]
        self._give_back()
        if not is_small_enough:
            raise DatabaseError(
                f"the database cannot be brought below [retention] max_database_mb = "
                f"{self._settings.max_database_mb}: what fills it are other tables, or the newest "
                f"{LAST_ROWS:,} rows of each. Raise the limit, or look at `llama-collector status`"
            )

    def _by_age(self) -> None:
        if days := self._settings.max_age_days:
            for table in self._tables:
                self._delete(table, Boundary(int(self._clock()) - days * _SECONDS_PER_DAY))

    def _by_rows(self) -> None:
        while self._shorten(self._surplus) >= rows.PASS_ROWS:
            pass  # a shorter pass was the last: what is added meanwhile is for the next run

    def _surplus(self, table: str) -> int:
        limit = self._settings.logs_max_rows if table == "logs" else self._settings.metrics_max_rows
        if not limit or rows.max_row_count(self._database, table) <= limit:
            return 0  # there is nothing to count
        return min(self._count(table) - limit, rows.PASS_ROWS)

    def _by_size(self) -> bool:
        """Whether the content fits; the same share of all tables goes until it does."""
        limit = self._limit_bytes
        while limit and (too_much := (used := self._space().used_bytes) - (1 - _SIZE_MARGIN) * limit) > 0:
            counts = {table: self._count(table) for table in self._counted}
            share = min(max(too_much / used, _SMALLEST_SHARE), rows.PASS_ROWS / max(1, *counts.values()))
            if not self._shorten(lambda table, share=share: _share_of(self._count(table), share)):  # type: ignore[misc]
                return False
        return True

    def _shorten(self, surplus: Callable[[str], int]) -> int:
        """Delete the oldest rows of all tables; how many.

        Args:
            surplus: how many are to go of a table, given its name.
        """
        before = sum(self._deleted.values())
        shortened = []
        for table in self._counted:
            going = surplus(table)
            # None where another program has deleted most of them meanwhile.
            if going > 0 and (boundary := rows.find_boundary(self._database, table, going)):
                self._delete(table, boundary)
                shortened.append(table)
        oldest = [rows.oldest(self._database, table) for table in shortened if table in _SAMPLES]
        since = max((time for time in oldest if time is not None), default=None)
        for table in self._tables:
            if since is not None and table not in _COUNTED:
                self._delete(table, Boundary(since))
        return sum(self._deleted.values()) - before

    @property
    def _counted(self) -> list[str]:
        return [table for table in self._tables if table in _COUNTED]

    def _count(self, table: str) -> int:
        """How many rows it has, but for what was added since the first call in this run."""
        if table not in self._rows:
            self._rows[table] = rows.count_rows(self._database, table, self._step)
        return self._rows[table]

    def _delete(self, table: str, boundary: Boundary) -> None:
        while deleted := self._step(lambda: rows.delete_chunk(self._database, table, boundary)):
            self._deleted[table] = self._deleted.get(table, 0) + deleted
            if table in self._rows:
                self._rows[table] -= deleted
            self._progress(sum(self._deleted.values()))

    def _give_back(self) -> None:
        if not self._space().can_shrink:
            self._make_shrinkable()
        while (space := self._space()).can_shrink and self._surplus_bytes(space) > 0:
            self._step(lambda: rows.release_pages(self._database))
            if self._space().free_bytes >= space.free_bytes:
                return  # nothing can be given back just now

    def _surplus_bytes(self, space: Space) -> int:
        """How much of the file is to be given back: what is not in reserve, or is beyond the limit."""
        beyond_limit = space.size_bytes - self._limit_bytes if self._limit_bytes else 0
        return min(space.free_bytes, max(space.free_bytes - RESERVE_BYTES, beyond_limit))

    def _make_shrinkable(self) -> None:
        """Rewrite a file that another program created, where it is worth it and soon done."""
        space = self._space()
        is_too_large = 0 < self._limit_bytes < space.size_bytes
        is_half_free = space.free_bytes > space.size_bytes / 2 and space.size_bytes > _REWRITE_MIN_BYTES
        if not (is_too_large or is_half_free):
            return
        if space.used_bytes <= REWRITE_MAX_BYTES:
            self._step(lambda: rows.rewrite(self._database))
        elif not self._is_told:
            self._is_told = True
            structlog.get_logger().warning(
                f"{space.free_bytes / BYTES_PER_MB:,.0f} MB of the database are free, and it cannot give "
                "them back, for another program created it: stop the collector once and run "
                "`llama-collector prune --vacuum`"
            )

    @property
    def _limit_bytes(self) -> int:
        return self._settings.max_database_mb * BYTES_PER_MB

    def _space(self) -> Space:
        return rows.read_space(self._database)

    def _step(self, action: Callable[[], Result]) -> Result:
        """One short transaction, and a rest as long in which others have the connection.

        Raises:
            Stopped: the collector ends.
            DatabaseBusy: another program holds a lock for longer than a reader should.
        """
        deadline = time.monotonic() + _BUSY_PATIENCE
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                return action()
            except DatabaseBusy:
                if time.monotonic() > deadline:
                    raise
            finally:
                self._stop.wait(max(_SHORTEST_REST_SECONDS, time.monotonic() - started))
        raise Stopped("the collector ends")


def _has_time(table: Table) -> bool:
    return any(column.name == "timestamp" for column in table.columns)


def _share_of(count: int, share: float) -> int:
    return min(math.ceil(count * share), count - LAST_ROWS)
