"""The time at which each line of an open log file was written."""

import os
import time
from collections.abc import Iterator

from collector.parsers.log.record import Record
from collector.parsers.log.time import StampClock, StoredClock, find_starts

LIVE_SECONDS = 2.5
"""Lines were written just now if the file had nothing unread, and was changed, at most this long ago."""

MAX_SCAN_BYTES = 256 * 2**20
"""Of a longer backlog only this much, at its end, is scanned for starts of processes."""

_SCAN_BYTES = 256 * 1024


class FileClock:
    """Times of the lines of one file: the time of reading for new lines, a computed one for a backlog.

    Args:
        descriptor: of the file; it belongs to the caller.
        stored: what `to_store` returned when the file was read last.
        caught_up_at: monotonic seconds at which the file had nothing unread; None if that is not known.
    """

    def __init__(self, descriptor: int, stored: StoredClock, caught_up_at: float | None) -> None:
        self._descriptor = descriptor
        self._stamps = StampClock(stored)
        self._caught_up_at = caught_up_at

    def to_store(self) -> StoredClock:
        """Return what the stored position contains of the clock."""
        return self._stamps.to_store()

    def record_caught_up(self, now: float) -> None:
        """Record that nothing is unread.

        Args:
            now: monotonic seconds.
        """
        self._caught_up_at = now

    def restart(self, stored: StoredClock) -> None:
        """Continue from an earlier state: empty for a file that is read from its beginning."""
        self._stamps = StampClock(stored)

    def times_now(self, records: list[Record]) -> tuple[list[int], list[float]]:
        """Return the times of records that were written just now, see `times`."""
        now = time.time()
        return self._stamps.times_of_live(records, now), self._stamps.moments_of_live(records, now)

    def times(
        self, records: list[Record], status: os.stat_result, offset: int, end: int
    ) -> tuple[list[int], list[float]]:
        """Return Unix seconds of records that were read from the file: as `logs` has them, and exact.

        Args:
            records: in their order.
            status: of the file, after the records were read.
            offset: of the first record.
            end: offset after the last record.
        """
        now = time.time()
        was_caught_up = (
            self._caught_up_at is not None and time.monotonic() - self._caught_up_at < LIVE_SECONDS
        )
        if was_caught_up and now - status.st_mtime < LIVE_SECONDS:
            last_written = status.st_mtime if end == status.st_size else None
            return (
                self._stamps.times_of_live(records, now, last_written),
                self._stamps.moments_of_live(records, now),
            )
        file_time = min(now, status.st_mtime)
        stamp_before = self._stamps.owner_stamp
        moments: list[float] = []
        times = self._stamps.times_of_backlog(records, file_time, None, moments)
        while len(times) < len(records):  # the next record is of a process whose start is not known
            end_time = os.fstat(self._descriptor).st_mtime
            starts = find_starts(self._read_from(offset), end_time, stamp_before)
            times += self._stamps.times_of_backlog(records[len(times) :], file_time, starts, moments)
        return times, moments

    def _read_from(self, offset: int) -> Iterator[bytes]:
        """Yield the content of the file from an offset on, of a long backlog only its end."""
        offset = max(offset, os.fstat(self._descriptor).st_size - MAX_SCAN_BYTES)
        while data := os.pread(self._descriptor, _SCAN_BYTES, offset):
            yield data
            offset += len(data)
