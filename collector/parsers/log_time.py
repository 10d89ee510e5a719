"""When a log line was written: its stamp counts from the start of its process, which is to be found.

A line that is read as it is written gets the time of its reading, and ties its process's stamps to the
clock. Lines of a backlog are reckoned from their stamps: from a start that is known already, else
backwards from the file's time, at which its last line was written.
"""

import re
from collections import deque
from collections.abc import Callable, Iterable

from collector.parsers.log_lines import Record, spawned_child

RESTART_SECONDS = 1.0
"""A stamp that lies further back than this is of a new process; threads may disorder less."""

_TOLERANCE_SECONDS = 2.0
_MAX_PREFIX_BYTES = 4096
_SPAWNING_TEXT = "spawning server instance with name="

OWNER = 0
"""Stands for the process that owns the log, where its router's children have their ports."""

StoredClock = dict[str, tuple[float, float]]

FindStarts = Callable[[float | None], list[float]]
"""Gives Unix seconds at which the processes of the rest of a file started, given the last stamp before."""


class StampClock:
    """Turns the stamps of one file into Unix seconds.

    Args:
        stored: what `to_store` gave, of an earlier life.
    """

    def __init__(self, stored: StoredClock | None = None) -> None:
        self._starts: dict[int, float] = {}
        self._stamps: dict[int, float] = {}
        for port, (start, stamp) in (stored or {}).items():
            self._starts[int(port)], self._stamps[int(port)] = start, stamp
        self._later_starts: deque[float] = deque()
        self._latest: float | None = None

    def to_store(self) -> StoredClock:
        """Start and last stamp of each process, for JSON."""
        return {
            str(port): (round(self._starts[port], 3), stamp)
            for port, stamp in self._stamps.items()
            if port in self._starts
        }

    def times_of_live(self, records: list[Record], now: float) -> list[int]:
        """Unix seconds of records that were written just now."""
        for port, stamp in {r.port: r.stamp for r in records if r.stamp is not None}.items():
            start, known = now - stamp, self._starts.get(port)
            if known is None or not known <= start <= known + _TOLERANCE_SECONDS:
                self._starts[port] = start
            self._stamps[port] = stamp
        self._later_starts.clear()
        self._latest = now
        return [int(now)] * len(records)

    def times_of_backlog(self, records: list[Record], file_time: float, find_starts: FindStarts) -> list[int]:
        """Unix seconds of records that were written some time ago.

        Args:
            records: in their order.
            file_time: Unix seconds of the file's last change.
            find_starts: asked only when a start is needed that is not known.
        """
        owner_stamp = self._stamps.get(OWNER)

        def starts_after() -> list[float]:
            return find_starts(owner_stamp)

        times: list[int] = []
        quick_port, start, last = -1, 0.0, 0.0  # nearly all lines are of the process of the line before
        for record in records:
            stamp = record.stamp
            if (
                stamp is not None
                and record.port == quick_port
                and stamp >= last - RESTART_SECONDS
                and _SPAWNING_TEXT not in record.message
            ):
                last = self._stamps[quick_port] = stamp
                time = start + stamp
                if time > file_time:  # noqa: PLR1730 - `min` costs a quarter of it all
                    time = file_time
                self._latest = time
                times.append(int(time))
                continue
            times.append(int(self._time_of(record, file_time, starts_after)))
            quick_port = record.port if record.port in self._starts else -1
            start, last = self._starts.get(quick_port, 0.0), self._stamps.get(quick_port, 0.0)
        return times

    def _time_of(self, record: Record, file_time: float, starts_after: Callable[[], list[float]]) -> float:
        stamp, port = record.stamp, record.port
        if stamp is not None:
            last = self._stamps.get(port)
            if port not in self._starts or (last is not None and stamp < last - RESTART_SECONDS):
                self._starts[port] = self._new_start(port, stamp, file_time, starts_after)
            self._stamps[port] = stamp
            self._latest = min(self._starts[port] + stamp, file_time)
        elif self._latest is None:
            self._latest = self._time_before_stamps(file_time, starts_after)
        if port == OWNER and _SPAWNING_TEXT in record.message and (child := spawned_child(record.message)):
            self._starts[child[0]], self._stamps[child[0]] = self._latest, 0.0
        return self._latest

    def _new_start(
        self, port: int, stamp: float, file_time: float, starts_after: Callable[[], list[float]]
    ) -> float:
        if port != OWNER:
            return (file_time if self._latest is None else self._latest) - stamp
        if not self._later_starts:
            self._later_starts.extend(starts_after())
            if OWNER in self._stamps and len(self._later_starts) > 1:
                self._later_starts.popleft()  # of the process that wrote the lines before
        return self._later_starts.popleft() if self._later_starts else file_time - stamp

    def _time_before_stamps(self, file_time: float, starts_after: Callable[[], list[float]]) -> float:
        if OWNER in self._starts:
            return min(self._starts[OWNER] + self._stamps[OWNER], file_time)
        self._later_starts.extend(starts_after())
        return self._later_starts[0] if self._later_starts else file_time


def find_starts(pieces: Iterable[bytes], end_time: float, last_stamp: float | None) -> list[float]:
    """Unix seconds at which each process of a log started, the oldest first.

    The last line was written at `end_time`; a process that is followed by another is taken to have
    written its last line when that one started.

    Args:
        pieces: the log, cut anywhere.
        end_time: Unix seconds.
        last_stamp: of the process whose lines stand before the pieces; it counts as the first process.
    """
    scan = _Scan(last_stamp)
    rest = b""
    for piece in pieces:
        whole, newline, begun = piece.rpartition(b"\n")
        if newline:
            scan.feed(rest + whole + newline)
            rest = b""
        rest = (rest + begun)[:_MAX_PREFIX_BYTES]  # of an overlong line the beginning is enough
    return scan.starts(end_time)


class _Scan:
    def __init__(self, last_stamp: float | None) -> None:
        self._last_stamps = [] if last_stamp is None else [last_stamp]
        self._child: tuple[int, float] | None = None  # where a child has written the last line: port, stamp
        self._spawned: dict[int, float] = {}  # stamp of the router when it started the child of that port

    def feed(self, lines: bytes) -> None:
        for port, minutes, seconds, microseconds in _STAMPS(_telling_part(lines)):
            stamp = int(microseconds) / 1e6 if microseconds else int(minutes) * 60 + float(seconds)
            if port:
                self._child = int(port), stamp
            else:
                self._child = None
                self._note(stamp)
        if _SPAWNING in lines:
            for minutes, seconds, port in _SPAWNS(lines):
                self._spawned[int(port)] = int(minutes) * 60 + float(seconds)

    def _note(self, stamp: float) -> None:
        if self._last_stamps and stamp >= self._last_stamps[-1] - RESTART_SECONDS:
            self._last_stamps[-1] = stamp
        else:
            self._last_stamps.append(stamp)

    def starts(self, end_time: float) -> list[float]:
        starts: list[float] = []
        end = end_time
        for number, last_stamp in enumerate(reversed(self._last_stamps)):
            stamp = last_stamp
            if number == 0 and self._child and self._child[0] in self._spawned:
                stamp = self._spawned[self._child[0]] + self._child[1]
            end -= stamp
            starts.insert(0, end)
        return starts


def _telling_part(lines: bytes) -> bytes:
    """Where no line is of a process's first minute, no process started: beginning and end tell all."""
    if len(lines) < 2 * _END_BYTES or b"\n0." in lines or b"\x1b" in lines or b"{" in lines:
        return lines  # JSON and coloured lines are looked at one by one
    return lines[:_END_BYTES] + b"\n" + lines[-_END_BYTES:]


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
