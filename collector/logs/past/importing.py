"""Import the requests of whole log files, and of the journal.

A stamp counts from the start of its process, and a file holds no wall clock. So all times are computed in two
steps: first the time since the start of the process, then that start.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from pathlib import Path

from collector.database.buffer import Buffer
from collector.database.repositories.base import Connected
from collector.errors import SourceFailed
from collector.logs.journal.reader import POLL_ENTRIES, JournalPosition, JournalReader
from collector.logs.past.files import read_pieces, read_records
from collector.logs.past.merging import MergeSummary, ProcessTimes, RequestMerge
from collector.logs.position import Models
from collector.logs.reader import LogSink, add_child
from collector.logs.rows.requests import LOG_FILE, REQUESTS, Origin
from collector.parsers.log.record import Record
from collector.parsers.log.time import StampClock, find_starts
from collector.parsers.requests.request import Request
from collector.parsers.requests.tracker import RequestTracker
from collector.schema import Row, Write

ORIGIN = "import"

BATCH_REQUESTS = 1000
"""Requests of one process that are added in one transaction, about."""

_PROCESS_SECONDS = 1e9
"""Processes of a file are placed so far apart, before the year 1970, that a moment shows its process."""

_UNKNOWN = 1e15
"""The moment of a line without any time."""


class RequestImport:
    """Adds the requests of files and of the journal that are not in the database yet.

    Args:
        database: contains the table.
        oldest: Unix seconds of the oldest request that is kept.
        now: Unix seconds.
    """

    def __init__(self, database: Connected, oldest: float, now: float) -> None:
        self._database = database
        self._oldest = oldest
        self._now = now

    def add_file(self, path: Path, ended: Sequence[float] = ()) -> MergeSummary:
        """Add the requests of a log file.

        Its last line is as old as the file, so that the times of the last process are known; those of earlier
        ones only if rows of their requests, or the user, say when they started or ended.

        Args:
            path: of the file, which may be compressed (gzip, xz, zstd).
            ended: Unix seconds at which each process in the file ended, in their order; that of the last one
                may be left out.

        Raises:
            SourceFailed: it cannot be read, or contains another number of processes.
            DatabaseError: the database cannot be read or written.
        """
        modified_at = min(_modified_at(path), self._now)
        lengths = _lengths(path)
        processes = [ProcessTimes(None, "unknown") for _ in lengths]
        if processes:
            processes[-1] = ProcessTimes(modified_at - lengths[-1], "file")
        if ended:
            if not len(lengths) - 1 <= len(ended) <= len(lengths):
                raise SourceFailed(
                    f"{path} contains {len(lengths)} processes with stamps: give --ended once for each, in "
                    "their order; for the last one it may be left out"
                )
            processes[: len(ended)] = [
                ProcessTimes(end - length, "given") for end, length in zip(ended, lengths, strict=False)
            ]
        merge = RequestMerge(self._database, ORIGIN, self._oldest)
        batch: list[Request] = []
        models: Models = {}
        for requests, models in self._requests(path, len(lengths)):
            batch += requests
            if len(batch) >= BATCH_REQUESTS:
                self._add(merge, batch, models, processes, modified_at)
                batch = []
        self._add(merge, batch, models, processes, modified_at)
        return merge.summary

    def _requests(self, path: Path, processes: int) -> Iterator[tuple[list[Request], Models]]:
        """Yield the requests of a file, each process at its place before the year 1970, and the models."""
        clock, tracker = StampClock(), RequestTracker()
        starts = [-(processes - number) * _PROCESS_SECONDS for number in range(processes)]
        models: Models = {}
        for records in read_records(path):
            moments = _moments(clock, records, starts)
            for record in records:
                models = add_child(models, record)
            yield tracker.add(records, moments), models
        yield tracker.end(), models

    def _add(
        self,
        merge: RequestMerge,
        requests: list[Request],
        models: Models,
        processes: Sequence[ProcessTimes],
        latest: float,
    ) -> None:
        """Add requests to the database, process by process."""
        requests.sort(key=lambda one: _process_of(one, len(processes)))  # stable: in the order of their ends
        for number, group in groupby(requests, key=lambda one: _process_of(one, len(processes))):
            of_process = list(group)
            if number < 0:
                for request in of_process:
                    if request.ended_at is not None and request.ended_at > _UNKNOWN / 2:
                        request.started_at = request.ended_at = request.queue_ms = None
                merge.add(of_process, models, ProcessTimes(0.0, "stamp", is_final=True), latest)
                continue
            for request in of_process:
                _move(request, (len(processes) - number) * _PROCESS_SECONDS)
            merge.add(of_process, models, processes[number], latest)

    def add_journal(self, unit: str, since: float = 0, arguments: Sequence[str] = ()) -> MergeSummary:
        """Add the requests of a unit in the journal.

        Args:
            unit: its name, as in the settings.
            since: Unix seconds of the first entry that is read.
            arguments: for journalctl, to name other journal files than those of the system.

        Raises:
            SourceAbsent, SourceFailed: the journal cannot be read.
            DatabaseError: the database cannot be read or written.
        """
        merge = RequestMerge(self._database, ORIGIN, self._oldest)
        position = JournalPosition(microseconds=int(since * 1e6))
        sink = _MergeSink(merge, self._now)
        reader = JournalReader([unit], sink, {JournalReader.name: position.to_json()}, arguments)
        reader.poll()
        while reader.has_more:
            reader.poll()
        reader.finish()
        return merge.summary


class _MergeSink(LogSink):
    """A sink that keeps the requests of a journal only.

    Args:
        merge: where they go.
        now: Unix seconds.
    """

    def __init__(self, merge: RequestMerge, now: float) -> None:
        super().__init__(Buffer())
        self._merge = merge
        self._now = now

    @property
    def room(self) -> int:
        """How many records may be added now."""
        return POLL_ENTRIES

    def requests(self, requests: Sequence[Request], models: Models, origin: Origin = LOG_FILE) -> Write:
        """Merge requests; return no rows."""
        times = ProcessTimes(0.0, origin.time_source or "arrival", is_final=True)
        self._merge.add(requests, models, times, self._now)
        return REQUESTS.insert()

    def put(
        self, rows: list[Row], positions: Mapping[str, str], size_bytes: int, others: Sequence[Write] = ()
    ) -> None:
        """Store neither lines nor position."""


def _modified_at(path: Path) -> float:
    """Return the Unix seconds at which a file was changed last."""
    try:
        return path.stat().st_mtime
    except OSError as error:
        raise SourceFailed(f"{path} cannot be read: {error.strerror}") from error


def _lengths(path: Path) -> list[float]:
    """Return how many seconds each process of a file was running when it wrote its last line."""
    starts = [*find_starts(read_pieces(path), 0.0, None), 0.0]
    return [following - start for start, following in pairwise(starts)]


def _moments(clock: StampClock, records: list[Record], starts: Sequence[float]) -> list[float]:
    """Return the moment of each record: at the place of its process, Unix seconds, or `_UNKNOWN`."""
    moments: list[float] = []
    known = clock.times_of_backlog(records, _UNKNOWN, None, moments)
    if len(known) < len(records):  # the first record of the file, or of a process that was not seen before
        clock.times_of_backlog(records[len(known) :], _UNKNOWN, starts, moments)
    return moments


def _process_of(request: Request, processes: int) -> int:
    """Return the number of the process of a request; -1 if its time is not known, or is one of the clock."""
    moment = request.ended_at
    return -1 if moment is None or moment >= 0 else processes + math.floor(moment / _PROCESS_SECONDS)


def _move(request: Request, seconds: float) -> None:
    """Move the times of a request."""
    if request.started_at is not None:
        request.started_at += seconds
    if request.ended_at is not None:
        request.ended_at += seconds
