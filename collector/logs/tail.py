"""One log file by its descriptor: how far it was read, whether it still is that file, what came since."""

import errno
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

from collector.errors import FileRewritten, SourceFailed
from collector.logs.reader import SETTLE_SECONDS
from collector.parsers.log_lines import (
    MAX_LINE_BYTES,
    Record,
    ends_with_key_flag,
    parse_records,
    split_lines,
)
from collector.parsers.log_time import StampClock, StoredClock, find_starts

CHUNK_BYTES = 256 * 1024
"""Read at once."""

ANCHOR_BYTES = 1024
"""As many bytes before the offset, and of the file's head, tell whether it is still the same file."""

UNFINISHED_SECONDS = 5.0
"""A line without an end is stored after this time as it is; what comes after it is a line of its own."""

SUSPECT_SECONDS = 0.9
"""A file of the same size and a newer time was written anew if it stays so for this long."""

LIVE_SECONDS = 2.5
"""What was written since a look not longer ago than this is read live."""

MAX_SCAN_BYTES = 256 * 2**20
"""In a longer backlog the starts of processes are sought in its end only."""

Identity = tuple[int, int]
"""Device and inode."""


@dataclass(slots=True)
class Mark:
    """What is stored of a file: which one it is, and up to where it was read.

    Args:
        device: where it lies.
        inode: its number there.
        offset: bytes that are done with.
        digest: of the file's head and of the bytes before the offset.
        modified_ns: time of its last change, when it was read.
        read_at: Unix seconds of that reading.
        skipping: whether the offset stands in an overlong line, whose rest is left out.
        key_follows: whether the last line ended with the flag of an API key.
        clock: what its stamps mean.
    """

    device: int
    inode: int
    offset: int = 0
    digest: str = ""
    modified_ns: int = 0
    read_at: float = 0.0
    skipping: bool = False
    key_follows: bool = False
    clock: StoredClock = field(default_factory=dict)

    @property
    def identity(self) -> Identity:
        """Device and inode."""
        return self.device, self.inode

    def to_json(self) -> dict[str, Any]:
        """For the stored position."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Piece:
    """What was read of a file and is not yet done with.

    Args:
        records: of whole lines.
        times: Unix seconds of each.
        data: the bytes that the offset moves over, at least their beginning and end.
        size_bytes: how far it moves.
        modified_ns: time of the file's last change when it was read.
        skipping: see `Mark`.
        held: bytes behind it that were seen and wait.
    """

    records: list[Record]
    times: list[int]
    data: bytes
    size_bytes: int
    modified_ns: int
    skipping: bool = False
    held: bytes = b""


class Tail:
    """A file that is followed.

    Args:
        descriptor: open for reading; it is closed with the tail.
        mark: up to where it was read.
        head: the file's first bytes, `ANCHOR_BYTES` at most and none behind the mark.
        anchor: as many bytes before the mark.
        seen_at: monotonic seconds at which nothing was unread yet.
    """

    def __init__(
        self,
        descriptor: int,
        mark: Mark,
        head: bytes = b"",
        anchor: bytes = b"",
        seen_at: float | None = None,
    ) -> None:
        self._descriptor = descriptor
        self.mark = mark
        self._head, self._anchor = head, anchor
        self._clock = StampClock(mark.clock)
        self._held = b""
        self._unfinished_since: float | None = None
        self._seen_modified_ns = self.status.st_mtime_ns
        self._suspected_ns: int | None = None
        self._suspected_since = 0.0
        self._caught_up_at = seen_at
        self.empty_since_ns: int | None = None  # its time when it was empty and what came before was sought

    @classmethod
    def open(cls, path: Path, seen_at: float | None = None) -> Self:
        """A file from its beginning.

        Raises:
            OSError: it cannot be opened.
            SourceFailed: it is no regular file.
        """
        descriptor = _open(path)
        return cls(descriptor, _fresh_mark(descriptor), seen_at=seen_at)

    @classmethod
    def resume(cls, path: Path, mark: Mark) -> Self | None:
        """A file from a stored place on; None where it does not hold what was read there.

        Raises:
            OSError: it cannot be opened.
            SourceFailed: it is no regular file.
        """
        descriptor = _open(path)
        length = min(mark.offset, ANCHOR_BYTES)
        head, anchor = os.pread(descriptor, length, 0), os.pread(descriptor, length, mark.offset - length)
        status = os.fstat(descriptor)
        if status.st_size < mark.offset or _digest(head, anchor) != mark.digest:
            os.close(descriptor)
            return None
        return cls(descriptor, replace(mark, device=status.st_dev, inode=status.st_ino), head, anchor)

    @property
    def status(self) -> os.stat_result:
        """Of the open file, wherever its name has gone."""
        return os.fstat(self._descriptor)

    def restart(self) -> None:
        """Begin anew: the file was truncated or written anew."""
        # Whatever else was written since the last reading may have been copied away.
        self.mark = replace(_fresh_mark(self._descriptor), modified_ns=self.mark.modified_ns)
        self._head = self._anchor = b""
        self._clock = StampClock()
        self._hold(b"")
        self._suspected_ns = None
        self.empty_since_ns = None

    def is_copy_of(self, piece: Piece) -> bool:
        """Whether this file begins like that beginning of another one, as far as both go."""
        data = os.pread(self._descriptor, len(piece.data), 0)
        return bool(data) and piece.data.startswith(data)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def read(self, room: int) -> Piece | None:
        """What came since the last call; None where there is nothing to take.

        Nothing is done with before `advance`.

        Args:
            room: lines that may be taken, at least 1.

        Raises:
            FileRewritten: the file no longer holds what was read of it.
        """
        status = self.status
        if status.st_size <= self.mark.offset:
            self._look_at_unchanged(status)
            return None
        anchor = self._anchor
        data = os.pread(self._descriptor, len(anchor) + CHUNK_BYTES, self.mark.offset - len(anchor))
        if not data.startswith(anchor + self._held):
            raise FileRewritten
        data = data[len(anchor) :]
        status = self.status  # what it was at the latest when it was read
        if self.mark.skipping:
            return self._skip_line(data, status)
        if data.startswith(b"\0"):
            return self._skip_hole(data, status)
        at_end = self.mark.offset + len(data) >= status.st_size
        read = self._read_lines if b"\n" in data else self._read_unfinished
        piece = read(data, room, status, at_end=at_end)
        if at_end:
            self._caught_up_at = time.monotonic()
        return piece

    def advance(self, piece: Piece) -> None:
        """The piece is done with: its rows go where the position goes."""
        mark = self.mark
        mark.offset += piece.size_bytes
        mark.skipping = piece.skipping
        if piece.records:
            mark.key_follows = ends_with_key_flag(piece.records[-1].message)
        if len(self._head) < ANCHOR_BYTES:
            self._head = (self._head + piece.data[:ANCHOR_BYTES])[:ANCHOR_BYTES]
        self._anchor = (self._anchor + piece.data[-ANCHOR_BYTES:])[-ANCHOR_BYTES:]
        mark.digest = _digest(self._head, self._anchor)
        mark.modified_ns = self._seen_modified_ns = piece.modified_ns
        mark.read_at = time.time()
        mark.clock = self._clock.to_store()
        self._hold(piece.held)
        self._unfinished_since = None

    def forget_held(self) -> None:
        """What was seen and waits is to be read again."""
        self._hold(b"")

    def last_words(self) -> tuple[list[Record], list[int]]:
        """Records of what was seen of a rewritten file and had waited, with their Unix seconds."""
        records = self._parse(self._held.rstrip(b"\n") + b"\n")
        return records, self._clock.times_of_live(records, time.time())

    def _look_at_unchanged(self, status: os.stat_result) -> None:
        """Of a file of our size, a newer time alone tells that it was written anew.

        For a while, for a write that is under way has set the time and not yet the size; and only when
        both times of the file agree, for a program that sets the one does not write.
        """
        now = self._caught_up_at = time.monotonic()
        modified_ns = status.st_mtime_ns
        if status.st_size < self.mark.offset + len(self._held):
            raise FileRewritten
        if modified_ns == self._seen_modified_ns:
            return
        if modified_ns != self._suspected_ns:
            self._suspected_ns, self._suspected_since = modified_ns, now
        elif now - self._suspected_since >= SUSPECT_SECONDS and modified_ns == status.st_ctime_ns:
            raise FileRewritten

    def _read_lines(self, data: bytes, room: int, status: os.stat_result, *, at_end: bool) -> Piece | None:
        lines = split_lines(data[: data.rfind(b"\n") + 1])
        if len(lines) > room:
            lines, at_end = lines[:room], False
        records = parse_records(lines, key_follows=self.mark.key_follows)
        done = len(lines)
        if records and not (at_end and _settled(status)):
            held = records[-1].line  # more lines of this record may come
            if held > 0 or at_end:
                records, done = records[:-1], held
        size = _length_of(data, done)
        held_bytes = data[size:] if at_end else b""
        if size == 0:
            self._hold(held_bytes)
            return None
        times = self._times(records, status)
        return Piece(records, times, data[:size], size, status.st_mtime_ns, held=held_bytes)

    def _read_unfinished(
        self, data: bytes, _room: int, status: os.stat_result, *, at_end: bool
    ) -> Piece | None:
        if len(data) > MAX_LINE_BYTES:
            records = self._parse(data[: MAX_LINE_BYTES + 1] + b"\n")
            times = self._times(records, status)
            return Piece(records, times, data, len(data), status.st_mtime_ns, skipping=True)
        if self._unfinished_since is None:
            self._unfinished_since = time.monotonic()
        if not at_end or time.monotonic() - self._unfinished_since < UNFINISHED_SECONDS:
            self._hold(data)
            return None
        size = _whole_characters(data)
        records = self._parse(data[:size] + b"\n")
        times = self._times(records, status)
        return Piece(records, times, data[:size], size, status.st_mtime_ns, held=data[size:])

    def _hold(self, data: bytes) -> None:
        self._held = data[:CHUNK_BYTES]

    def _skip_line(self, data: bytes, status: os.stat_result) -> Piece:
        end = data.find(b"\n") + 1
        size = end or len(data)
        return Piece([], [], data[:size], size, status.st_mtime_ns, skipping=end == 0)

    def _skip_hole(self, data: bytes, status: os.stat_result) -> Piece:
        """NUL bytes, as a truncation from outside leaves them before what a writer adds."""
        size = nuls = len(data) - len(data.lstrip(b"\0"))
        if nuls == len(data):
            size = max(nuls, self._next_data() - self.mark.offset)
        return Piece([], [], data[:nuls], size, status.st_mtime_ns)

    def _next_data(self) -> int:
        try:
            return os.lseek(self._descriptor, self.mark.offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno in (errno.ENXIO, errno.EINVAL):  # no more data, or a file system without holes
                return 0
            raise

    def _parse(self, line: bytes) -> list[Record]:
        return parse_records(split_lines(line), key_follows=self.mark.key_follows)

    def _times(self, records: list[Record], status: os.stat_result) -> list[int]:
        now = time.time()
        if self._is_live(now - status.st_mtime):
            return self._clock.times_of_live(records, now)
        return self._clock.times_of_backlog(records, min(now, status.st_mtime), self._find_starts)

    def _is_live(self, age_seconds: float) -> bool:
        return (
            self._caught_up_at is not None
            and time.monotonic() - self._caught_up_at < LIVE_SECONDS
            and age_seconds < LIVE_SECONDS
        )

    def _find_starts(self, last_stamp: float | None) -> list[float]:
        status = self.status
        begin = max(self.mark.offset, status.st_size - MAX_SCAN_BYTES)
        return find_starts(self._pieces(begin), status.st_mtime, last_stamp)

    def _pieces(self, begin: int) -> Iterator[bytes]:
        while piece := os.pread(self._descriptor, CHUNK_BYTES, begin):
            yield piece
            begin += len(piece)


def _fresh_mark(descriptor: int) -> Mark:
    status = os.fstat(descriptor)
    return Mark(status.st_dev, status.st_ino, digest=_digest(b"", b""), modified_ns=status.st_mtime_ns)


def _open(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not hold us up
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SourceFailed(f"{path} is no regular file: name the file that llama-server writes")
    return descriptor


def _digest(head: bytes, anchor: bytes) -> str:
    return blake2b(head + anchor, digest_size=16).hexdigest()


def _settled(status: os.stat_result) -> bool:
    return not 0 <= time.time() - status.st_mtime < SETTLE_SECONDS


def _length_of(data: bytes, lines: int) -> int:
    """Bytes of the first lines, their newlines included."""
    rest = data.split(b"\n", lines)[lines]
    return len(data) - len(rest)


def _whole_characters(data: bytes) -> int:
    """Bytes up to the end of the last whole UTF-8 character."""
    for back in range(1, min(4, len(data)) + 1):
        lead = data[-back]
        if lead < 0x80:  # noqa: PLR2004 - ASCII
            break
        if lead >= 0xC0:  # noqa: PLR2004 - first byte of a character
            length = 2 + (lead >= 0xE0) + (lead >= 0xF0)  # noqa: PLR2004
            return len(data) - back if back < length and back < len(data) else len(data)
    return len(data)
