"""When a log line was written, computed from its stamp: seconds since the start of its process.

A line that is read as it is written has the time of the reading, which also shows when its process started.
The lines of a backlog were written some time ago, and their times are start plus stamp. The start is known if
the process wrote lines that were read live, or is computed backwards from the end of the file: its last line
was written when the file was changed last. Example: a file was changed last at 12:00:00, and its last stamp
is 90 s; so the process started at 11:58:30, and a line with the stamp 30 s was written at 11:59:00.

Only the owner of the log is computed like this. The children of a router have stamps of their own. The
router logs when it starts a child, and that is the start of the child.
"""

import re
from collections import deque
from collections.abc import Iterable, Sequence

from collector.parsers.log.lines import spawned_child
from collector.parsers.log.record import Record

RESTART_SECONDS = 1.0
"""A stamp that is smaller by more than this belongs to a new process; threads may disorder less."""

OWNER = 0
"""Key of the process that owns the log, beside the ports of its router's children."""

StoredClock = dict[str, tuple[float, float]]
"""Start (Unix seconds) and last stamp of each process, by port as text."""

_TOLERANCE_SECONDS = 2.0
_MAX_PREFIX_BYTES = 4096
_SPAWNING_TEXT = "spawning server instance with name="


class StampClock:
    """Unix seconds of the records of one file, in their order.

    Args:
        stored: what `to_store` returned when the file was read last.
    """

    def __init__(self, stored: StoredClock | None = None) -> None:
        self._starts: dict[int, float] = {}
        self._stamps: dict[int, float] = {}
        for port, (start, stamp) in (stored or {}).items():
            self._starts[int(port)], self._stamps[int(port)] = start, stamp
        self._later_starts: deque[float] = deque()  # of owners that come later in the backlog
        self._latest: float | None = None

    def to_store(self) -> StoredClock:
        """Return start and last stamp of each process, for JSON."""
        return {
            str(port): (round(self._starts[port], 3), stamp)
            for port, stamp in self._stamps.items()
            if port in self._starts
        }

    @property
    def owner_stamp(self) -> float | None:
        """The last stamp of the log's owner; None before its first one."""
        return self._stamps.get(OWNER)

    def times_of_live(
        self, records: list[Record], now: float, last_written: float | None = None
    ) -> list[int]:
        """Return Unix seconds of records that were written just now.

        Their stamps also show when their processes started. A start that is known already is kept: reading
        comes somewhat later than writing, which makes the process seem to have started later.

        Args:
            records: in their order.
            now: Unix seconds.
            last_written: Unix seconds at which the last record was written; None if that is not known.
        """
        writer = records[-1].port if records and last_written is not None else None
        last_stamps = {record.port: record.stamp for record in records if record.stamp is not None}
        for port in sorted(last_stamps):  # the owner first: it started the others
            stamp = last_stamps[port]
            written = last_written if port == writer and last_written is not None else now
            start, known = written - stamp, self._starts.get(port)
            if known is None or not known <= start <= known + _TOLERANCE_SECONDS:
                self._starts[port] = start
            self._stamps[port] = stamp
            if port == OWNER:
                self._start_children(records)
        self._later_starts.clear()
        self._latest = now
        if all(record.time is None for record in records):
            return [int(now)] * len(records)
        return [int(now if record.time is None else min(record.time, now)) for record in records]

    def _start_children(self, records: Iterable[Record]) -> None:
        """Set the starts of children that the owner says it starts in these records."""
        for record in records:
            if _SPAWNING_TEXT not in record.message or record.port != OWNER or record.stamp is None:
                continue
            if child := spawned_child(record.message):
                self._starts[child[0]] = self._starts[OWNER] + record.stamp
                self._stamps[child[0]] = 0.0

    def moments_of_live(self, records: list[Record], now: float) -> list[float]:
        """Return exact Unix seconds of records for which `times_of_live` was just called.

        They are start and stamp. A stamp that is greater than the last one of its process belongs to a
        process that has ended meanwhile; its record has the time of the reading, as those without a stamp.
        """
        moments = []
        for record in records:
            stamp, port = record.stamp, record.port
            if stamp is not None and port in self._starts and stamp <= self._stamps[port]:
                moments.append(min(self._starts[port] + stamp, now))
            else:
                moments.append(now if record.time is None else min(record.time, now))
        return moments

    def times_of_backlog(
        self,
        records: Sequence[Record],
        file_time: float,
        starts: Sequence[float] | None = None,
        moments: list[float] | None = None,
    ) -> list[int]:
        """Return Unix seconds of records that were written some time ago.

        This stops before a record whose process started at an unknown time. The caller (`FileClock`) then
        calls it again, from that record on, with the starts: to find them is slow and seldom necessary.

        Args:
            records: in their order.
            file_time: Unix seconds of the file's last change.
            starts: result of `find_starts`; None where the previous call did not stop.
            moments: the exact times are added to it.

        Returns:
            the times of the records before that one. With `starts`, there is at least one.
        """
        times: list[int] = []
        add_moment = ([] if moments is None else moments).append
        # Nearly every record is of the process of the record before it: these take the fast path.
        port, start, last = -1, 0.0, 0.0
        for record in records:
            stamp = record.stamp
            if (
                stamp is not None
                and record.port == port
                and stamp >= last - RESTART_SECONDS
                and record.time is None
                and _SPAWNING_TEXT not in record.message
            ):
                last = self._stamps[port] = stamp
                time = start + stamp
                if time > file_time:  # noqa: PLR1730 - `min` costs a quarter of it all
                    time = file_time
                self._latest = time
                times.append(int(time))
                add_moment(time)
                continue
            if record.time is not None:
                is_unknown = False
            elif stamp is None:
                is_unknown = self._latest is None and OWNER not in self._starts
            else:
                is_owner = record.port == OWNER
                is_unknown = is_owner and not self._later_starts and self._is_new_process(OWNER, stamp)
            if is_unknown:
                if starts is None:
                    break
                self._later_starts.extend(starts)
                if stamp is not None and OWNER in self._stamps and len(self._later_starts) > 1:
                    self._later_starts.popleft()  # of the process that wrote the lines before
                starts = None
            time = self._update(record, file_time)
            times.append(int(time))
            add_moment(time)
            port = record.port if record.port in self._starts else -1
            start, last = self._starts.get(port, 0.0), self._stamps.get(port, 0.0)
        return times

    def _is_new_process(self, port: int, stamp: float) -> bool:
        """Return whether a stamp is the first of its process: its port is unknown, or it is smaller."""
        last = self._stamps.get(port)
        return port not in self._starts or (last is not None and stamp < last - RESTART_SECONDS)

    def _update(self, record: Record, file_time: float) -> float:
        """Update the state with a record, whose process may be new, and return the record's time."""
        stamp, port = record.stamp, record.port
        if record.time is not None:  # the line says when it was written
            self._latest = min(record.time, file_time)
            if stamp is not None:
                self._starts[port], self._stamps[port] = self._latest - stamp, stamp
        elif stamp is not None:
            if self._is_new_process(port, stamp):
                if port != OWNER:  # a child whose start was not seen: it writes now
                    start = (file_time if self._latest is None else self._latest) - stamp
                else:
                    start = self._later_starts.popleft() if self._later_starts else file_time - stamp
                self._starts[port] = start
            self._stamps[port] = stamp
            self._latest = min(self._starts[port] + stamp, file_time)
        elif self._latest is None:  # lines without a stamp before the first one that has one
            if OWNER in self._starts:
                self._latest = min(self._starts[OWNER] + self._stamps[OWNER], file_time)
            else:
                self._latest = self._later_starts[0] if self._later_starts else file_time
        if port == OWNER and _SPAWNING_TEXT in record.message and (child := spawned_child(record.message)):
            self._starts[child[0]], self._stamps[child[0]] = self._latest, 0.0
        return self._latest


def find_starts(pieces: Iterable[bytes], end_time: float, last_stamp: float | None) -> list[float]:
    """Return Unix seconds at which each process of a log started, the oldest first.

    The last line was written at `end_time`. A process that is followed by another is assumed to have written
    its last line when that one started.

    Args:
        pieces: the log, divided anywhere.
        end_time: Unix seconds.
        last_stamp: of the process that wrote the lines before the pieces; it counts as the first process.
    """
    scan = _StampScan(last_stamp)
    rest = b""
    for piece in pieces:
        whole, newline, unfinished = piece.rpartition(b"\n")
        if newline:
            scan.add(rest + whole + newline)
            rest = b""
        rest = (rest + unfinished)[:_MAX_PREFIX_BYTES]  # the beginning of an overlong line is enough
    return scan.starts(end_time)


class _StampScan:
    """Stamps of a log, process by process, without parsing its lines.

    Args:
        last_stamp: of the process that wrote the lines before; None if there is none.
    """

    def __init__(self, last_stamp: float | None) -> None:
        self._last_stamps = [] if last_stamp is None else [last_stamp]  # of each owner of the log
        self._child: tuple[int, float] | None = None  # port and stamp, if a child wrote the last line
        self._spawned: dict[int, float] = {}  # stamp of the router when it started the child of a port

    def add(self, lines: bytes) -> None:
        """Scan whole lines.

        A process starts with a stamp of its first minute. If there is none, all lines are of one process, and
        only those at the beginning and at the end are scanned: the stamps between show nothing new. Lines of
        JSON and coloured lines are always scanned, because such stamps are not found in them so quickly.
        """
        scanned = lines
        if len(lines) >= 2 * _END_BYTES and not (b"\n0." in lines or b"\x1b" in lines or b"{" in lines):
            # From a whole line on: the rest of the stamp 100.14.900.000 may look like that of a new process.
            scanned = lines[:_END_BYTES] + lines[lines.index(b"\n", len(lines) - _END_BYTES) :]
        for port, minutes, seconds, microseconds in _STAMPS(scanned):
            stamp = int(microseconds) / 1e6 if microseconds else int(minutes) * 60 + float(seconds)
            if port:
                self._child = int(port), stamp
                continue
            self._child = None
            if self._last_stamps and stamp >= self._last_stamps[-1] - RESTART_SECONDS:
                self._last_stamps[-1] = stamp
            else:
                self._last_stamps.append(stamp)
        if _SPAWNING in lines:
            for minutes, seconds, port in _SPAWNS(lines):
                self._spawned[int(port)] = int(minutes) * 60 + float(seconds)

    def starts(self, end_time: float) -> list[float]:
        """Return the start of each owner of the log, the oldest first."""
        stamps = list(self._last_stamps)
        if stamps and self._child and self._child[0] in self._spawned:
            # A child wrote the last line, later than the router's last one.
            stamps[-1] = self._spawned[self._child[0]] + self._child[1]
        starts: deque[float] = deque()
        for stamp in reversed(stamps):
            end_time -= stamp
            starts.appendleft(end_time)
        return list(starts)


_END_BYTES = 16 * 1024
_SPAWNING = _SPAWNING_TEXT.encode()
_STAMPS = re.compile(
    rb"^(?:\x1b\[[\d;]*m)*(?:\[ *(\d{1,5})\] ?)?(?:\x1b\[[\d;]*m)*"
    rb'(?:(\d{1,9})\.(\d\d\.\d{3})\.\d{3}\b|\{"type":"log","time":(\d{1,15}),)',
    re.MULTILINE,
).findall
_SPAWNS = re.compile(
    rb"^(?:\x1b\[[\d;]*m)*(\d{1,9})\.(\d\d\.\d{3})\.\d{3}\b[^\n]*?"
    + _SPAWNING
    + rb"[^\n]+ on port (\d{1,5})",
    re.MULTILINE,
).findall
