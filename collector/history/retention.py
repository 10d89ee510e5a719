"""Delete the oldest rows beyond the limits of `[retention]`, in short transactions."""

import math
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import structlog

from collector.database import Database, deletion
from collector.database.deletion import PASS_ROWS, Boundary
from collector.database.documented import DOCUMENTED_TABLES
from collector.database.space import read_space
from collector.errors import DatabaseError, Stopped
from collector.history.clock_trust import ClockTrust
from collector.history.shrinking import FileShrinking
from collector.history.steps import ShortSteps
from collector.schema import BYTES_PER_MB, Table
from collector.settings import RetentionSettings

LAST_ROWS = 1000
"""The newest rows of each table that are never deleted because of the file's size."""

SIZE_MARGIN = 0.05
"""Part of the size limit that is left free for the rows of the time until the next prune."""

MIN_SHARE = 0.005
"""Smallest part of each table that one round deletes because of the size, so that there are few rounds."""

_SECONDS_PER_DAY = 86_400

_SAMPLE_TABLES = ("metrics", "host_metrics")
"""Tables with one row per sample. Tables with several rows per sample are kept for as long as these."""

_COUNTED_TABLES = (*_SAMPLE_TABLES, "model_events", "logs", "requests")
"""Tables that a number of rows, or a time of their own, limits; others are kept as long as the samples."""

Progress = Callable[[int], object]
"""Called with the number of rows deleted so far."""


@dataclass(frozen=True, slots=True)
class PruneSummary:
    """What one prune did.

    Args:
        deleted: number of deleted rows by table; tables without any are left out.
        size_before_bytes: size of the file before it.
        size_after_bytes: size of the file after it.
    """

    deleted: dict[str, int]
    size_before_bytes: int
    size_after_bytes: int


class Prune:
    """Deletes the oldest rows beyond the limits, while everything else goes on.

    Every step is a short transaction, and others can use the connection between two of them.

    Args:
        database: to be pruned.
        tables: own tables beside the documented ones; those with a `timestamp` are pruned.
        settings: the limits.
        stop: ends it early; the next run continues.
        clock: says what is too old, and whether it may; None for the wall clock.
    """

    def __init__(
        self,
        database: Database,
        tables: Iterable[Table],
        settings: RetentionSettings,
        stop: threading.Event,
        clock: ClockTrust | None = None,
    ) -> None:
        self._database = database
        self._tables = [
            table.name
            for table in (*DOCUMENTED_TABLES, *tables)
            if any(column.name == "timestamp" for column in table.columns)
        ]
        self._counted_tables = [table for table in self._tables if table in _COUNTED_TABLES]
        self._settings = settings
        self._limit_bytes = settings.max_database_mb * BYTES_PER_MB
        self._clock = clock or ClockTrust()
        # Read now: the first sample of this run already has the time of a clock that may be wrong.
        self._newest_before = _newest_time(database)
        self._is_distrust_logged = False
        self._is_stuck = False
        self._steps = ShortSteps(stop)
        self._shrinking = FileShrinking(database, self._limit_bytes, self._steps)
        self._progress: Progress = lambda _deleted: None
        self._deleted: dict[str, int] = {}
        self._row_counts: dict[str, int] = {}

    def run(self, progress: Progress = lambda _deleted: None) -> PruneSummary:
        """Delete the rows that are too old, then those beyond the limits on rows, then those on the size.

        Args:
            progress: called after each transaction.

        Raises:
            DatabaseBusy: another program holds a lock; what was deleted remains deleted.
            DatabaseError: disk full, read-only, damaged, or the file cannot be made small enough.
        """
        self._progress, self._deleted, self._row_counts = progress, {}, {}
        size_bytes = read_space(self._database).size_bytes
        with suppress(Stopped):
            self._prune_by_age()
            self._prune_by_rows()
            is_small_enough = self._prune_by_size()
            for table in self._deleted:
                self._steps.run(partial(deletion.analyze, self._database, table))
            self._shrinking.run()
            self._is_stuck = not is_small_enough
            if not is_small_enough:
                raise DatabaseError(
                    f"the database cannot be made smaller than [retention] max_database_mb = "
                    f"{self._settings.max_database_mb}: it is full of other tables, or of the newest "
                    f"{LAST_ROWS:,} rows of each table. Raise the limit, or check `llama-collector status`"
                )
        return PruneSummary(self._deleted, size_bytes, read_space(self._database).size_bytes)

    def run_if_too_large(self) -> None:
        """Prune if the file is larger than its limit; to be called often.

        Example: the log of a week is read after an upgrade, 100 MB in a few seconds, with a limit of 50 MB.

        Raises:
            DatabaseBusy: another program holds a lock.
            DatabaseError: see `run`.
        """
        if self.is_too_large():
            self.run()

    def is_too_large(self) -> bool:
        """Return whether the file is larger than its limit, and the next prune can change that."""
        if not self._limit_bytes or self._is_stuck:
            return False
        return read_space(self._database).size_bytes > self._limit_bytes

    def _prune_by_age(self) -> None:
        """Delete the rows older than `max_age_days`, or their own limit, unless the clock may be wrong."""
        boundaries = self._age_boundaries()
        if not boundaries:
            return
        if not self._clock.is_trusted(self._newest_before):
            if not self._is_distrust_logged:
                self._is_distrust_logged = True
                structlog.get_logger().warning(
                    "the clock has jumped by more than a day: nothing is deleted because of its age for a "
                    "day, or until the clock is synchronized"
                )
            return
        self._is_distrust_logged = False
        for table, boundary in boundaries.items():
            self._delete(table, boundary)

    def _age_boundaries(self) -> dict[str, Boundary]:
        """Return the age limits in force: of requests only once there are rows beyond theirs."""
        now, settings = int(self._clock.now()), self._settings
        days = dict.fromkeys(self._tables, settings.max_age_days)
        if "requests" in days:
            oldest_kept = now - settings.requests_max_age_days * _SECONDS_PER_DAY
            oldest = deletion.oldest_time(self._database, "requests")
            is_beyond = settings.requests_max_age_days and oldest is not None and oldest < oldest_kept
            days["requests"] = settings.requests_max_age_days if is_beyond else 0
        return {table: Boundary(now - limit * _SECONDS_PER_DAY) for table, limit in days.items() if limit}

    def _prune_by_rows(self) -> None:
        """Delete the oldest rows beyond `metrics_max_rows` and `logs_max_rows`.

        One pass deletes at most `PASS_ROWS` rows of each table, so there is another one while a pass deletes
        that many. The last pass deletes fewer; rows that were added meanwhile are left to the next run.
        """
        while True:
            excess_rows = {}
            for table in self._counted_tables:
                limit = self._row_limit(table)
                # The rows are counted, which takes long, only if there can be too many.
                if limit and deletion.max_row_count(self._database, table) > limit:
                    excess_rows[table] = min(self._row_count(table) - limit, PASS_ROWS)
            if self._delete_oldest(excess_rows) < PASS_ROWS:
                return

    def _row_limit(self, table: str) -> int:
        """Return how many rows a table may have; 0 = any number."""
        limits = {"logs": self._settings.logs_max_rows, "requests": 0}
        return limits.get(table, self._settings.metrics_max_rows)

    def _prune_by_size(self) -> bool:
        """Delete the oldest rows of all tables until their content fits into `max_database_mb`.

        How many bytes a row uses is not known, so it is done in rounds: measure the content, choose a share,
        delete that share of each table, measure again. Each table loses the same share, so that a flood of
        log lines does not shorten the history of the samples to nothing.

        Example: the limit is 100 MB, so the content should have 95 MB, and it has 190 MB with 80,000 samples
        and 40,000 log lines. Round 1 deletes the oldest half of both. The content now has 97 MB, because the
        older log lines were shorter. Round 2 deletes 2 % of what is left, and the content fits.

        Returns:
            Whether it fits. If not, nothing more may be deleted: each table has only `LAST_ROWS` rows left,
            and something else fills the file, for example a table of another program.
        """
        if not self._limit_bytes:
            return True
        target_bytes = (1 - SIZE_MARGIN) * self._limit_bytes
        while (used_bytes := read_space(self._database).used_bytes) > target_bytes:
            counts = {table: self._row_count(table) for table in self._counted_tables}
            share = _share_to_delete(used_bytes, target_bytes, counts.values())
            if not self._delete_oldest(
                {table: _rows_in_share(rows, share) for table, rows in counts.items()}
            ):
                return False
        return True

    def _delete_oldest(self, rows_to_delete: Mapping[str, int]) -> int:
        """Delete the oldest rows of the counted tables, and of the other tables those of the same time.

        Example: 1,000 rows of `metrics` are deleted, and its oldest sample is now of 12:00. `gpu_metrics` has
        a row per GPU and sample, which no number of rows limits; its rows before 12:00 are deleted.

        Args:
            rows_to_delete: number of rows for each counted table; 0 or less for none.

        Returns:
            How many rows were deleted, of all tables together.
        """
        before = sum(self._deleted.values())
        shortened = []
        for table, rows in rows_to_delete.items():
            # There is no boundary if another program has deleted so many rows meanwhile that fewer are left.
            if rows > 0 and (boundary := deletion.find_boundary(self._database, table, rows)):
                self._delete(table, boundary)
                shortened.append(table)
        times = [
            deletion.oldest_time(self._database, table) for table in shortened if table in _SAMPLE_TABLES
        ]
        oldest_sample = max((time for time in times if time is not None), default=None)
        if oldest_sample is not None:
            for table in self._tables:
                if table not in _COUNTED_TABLES:
                    self._delete(table, Boundary(oldest_sample))
        return sum(self._deleted.values()) - before

    def _row_count(self, table: str) -> int:
        """Return the number of rows of a table, counted once a run; rows added later are not included."""
        if table not in self._row_counts:
            self._row_counts[table] = deletion.count_rows(self._database, table, self._steps.run)
        return self._row_counts[table]

    def _delete(self, table: str, boundary: Boundary) -> None:
        """Delete the rows of a table up to a boundary, in chunks."""
        while deleted := self._steps.run(lambda: deletion.delete_chunk(self._database, table, boundary)):
            self._deleted[table] = self._deleted.get(table, 0) + deleted
            if table in self._row_counts:
                self._row_counts[table] -= deleted
            self._progress(sum(self._deleted.values()))


def _newest_time(database: Database) -> int | None:
    """Return the time of the sample that was inserted last."""
    rows = database.query("SELECT timestamp FROM metrics ORDER BY id DESC LIMIT 1")
    return rows[0]["timestamp"] if rows and isinstance(rows[0]["timestamp"], int) else None


def _share_to_delete(used_bytes: float, target_bytes: float, row_counts: Iterable[int]) -> float:
    """Return the share of each table that one round deletes, from 0 to 1.

    Mostly it is the share of the content that is too much: of 190 MB that should be 95 MB, half. There are
    two exceptions:

    - Little is too much, for example 0.01 %. Then it is `MIN_SHARE`: otherwise many rounds would each delete
      a few rows, until by chance a page becomes free.
    - A table is very long, for example `logs` with 1,000,000 rows. Then it is 10 %, because finding the
      boundary of more than `PASS_ROWS` rows would delay a flush; the next round deletes the next 10 %.
    """
    excess_share = (used_bytes - target_bytes) / used_bytes
    return min(max(excess_share, MIN_SHARE), PASS_ROWS / max(1, *row_counts))


def _rows_in_share(rows: int, share: float) -> int:
    """Return how many of a table's rows a share is, but at most all except `LAST_ROWS`."""
    return min(math.ceil(rows * share), rows - LAST_ROWS)
