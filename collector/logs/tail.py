"""One open log file: what was added to it since it was read last."""

import errno
import os
import re
import stat
import time
from dataclasses import replace
from pathlib import Path
from typing import Self

from collector.errors import FileRewritten, SourceFailed
from collector.logs.chunk import Chunk, complete_records, size_of_whole_characters
from collector.logs.clock import FileClock
from collector.logs.position import Anchor, FilePosition
from collector.logs.reader import SETTLE_SECONDS
from collector.logs.rewrite import RewriteDetector
from collector.parsers.log.keys import key_follows_after
from collector.parsers.log.lines import parse_records
from collector.parsers.log.record import MAX_LINE_BYTES, Record, split_lines

CHUNK_BYTES = 256 * 1024
"""Bytes that are read at once."""

UNFINISHED_SECONDS = 5.0
"""A line without a newline is stored after this time; what is added to it later is another line."""


DELETED_SECONDS = 300
"""A deleted file is closed this long after its last line; until then its disk space is not free."""

DISTINCTIVE_BYTES = 256 * 1024
"""Content of this length is not equal by chance, even without stamps."""

MIN_COPY_BYTES = 1024
"""A shorter file is not taken for the beginning of another one: it may contain half of its first line."""

_STAMP = re.compile(rb"\d\.\d\d\.\d{3}\.\d{3} |\"time\":\d|timestamp|\d\d:\d\d:\d\d").search


class Tail:
    """An open file that is followed by its descriptor, wherever rotation moves its name.

    `read` returns the next chunk, and `advance` moves the position over it. Between the two the caller
    decides whether something else must be stored first. Every byte is in one of four states:

    - before the position: stored;
    - in the chunk: to be stored by the caller, with the position after it;
    - incomplete: an unfinished line, or the newest record, which may continue. It is read again by the next
      call. That it still begins with the same bytes shows that the file was not rewritten meanwhile;
    - not yet read.

    Args:
        descriptor: open for reading; it is closed with the tail.
        position: up to where the file was read.
        anchor: of the file at that position.
        caught_up_at: monotonic seconds at which the file had nothing unread; None if that is not known.
    """

    def __init__(
        self,
        descriptor: int,
        position: FilePosition,
        anchor: Anchor,
        caught_up_at: float | None = None,
    ) -> None:
        self._descriptor = descriptor
        self.position = position
        self._anchor = anchor
        self._incomplete = b""
        self._unfinished_since: float | None = None
        self._clock = FileClock(descriptor, position.clock, caught_up_at)
        self._rewrite = RewriteDetector(self.status.st_mtime_ns)

    @classmethod
    def open(cls, path: Path, caught_up_at: float | None = None) -> Self:
        """Open a file at its beginning.

        Raises:
            OSError: it cannot be opened.
            SourceFailed: it is not a regular file.
        """
        descriptor = open_regular_file(path)
        return cls(descriptor, FilePosition.at_start(os.fstat(descriptor)), Anchor(), caught_up_at)

    @classmethod
    def resume(cls, path: Path, position: FilePosition) -> Self | None:
        """Open a file at a stored position; return None if it does not contain what was read up to there.

        Raises:
            OSError: it cannot be opened.
            SourceFailed: it is not a regular file.
        """
        descriptor = open_regular_file(path)
        anchor = Anchor.read(descriptor, position.offset)
        status = os.fstat(descriptor)
        if status.st_size < position.offset or anchor.digest != position.digest:
            os.close(descriptor)
            return None
        # A copy has another inode, and a device may have another number after a restart of the machine.
        position = replace(position, device=status.st_dev, inode=status.st_ino)
        return cls(descriptor, position, anchor)

    @property
    def status(self) -> os.stat_result:
        """Status of the open file, also after rotation has renamed it."""
        return os.fstat(self._descriptor)

    @property
    def is_long_deleted(self) -> bool:
        """Whether the file has no name any more, and nothing was written into it for a while."""
        status = self.status
        return status.st_nlink == 0 and time.time() - max(status.st_mtime, status.st_ctime) > DELETED_SECONDS

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def read(self, max_lines: int, *, is_followed: bool = False) -> Chunk | None:
        """Return the next chunk, or None if nothing is complete.

        Args:
            max_lines: how many lines the chunk may contain, at least 1.
            is_followed: whether the next file has lines already, so that the last record is complete.

        Raises:
            FileRewritten: the file no longer contains what was read of it.
        """
        status = self.status
        if status.st_size <= self.position.offset:
            now = time.monotonic()
            self._clock.record_caught_up(now)
            is_shorter = status.st_size < self.position.offset + len(self._incomplete)
            has_content = self.position.offset > 0  # a truncated file stays empty until the next line
            if is_shorter or (has_content and self._rewrite.is_rewritten(status, now) and self._is_changed()):
                raise FileRewritten
            return None
        length = len(self._anchor.before)
        data = os.pread(self._descriptor, length + CHUNK_BYTES, self.position.offset - length)
        if not data.startswith(self._anchor.before + self._incomplete):
            raise FileRewritten
        data = data[length:]
        status = self.status  # read after the data: the data is not newer than this
        if self.position.skipping:  # the rest of an overlong line, whose beginning was stored with `CUT_MARK`
            size = data.find(b"\n") + 1
            skipped = data[: size or len(data)]
            return Chunk([], [], [], skipped, len(skipped), status.st_mtime_ns, skipping=size == 0)
        if data.startswith(b"\0"):
            return self._skip_hole(data, status)
        at_end = self.position.offset + len(data) >= status.st_size
        if b"\n" in data:
            is_settled = is_followed or not 0 <= time.time() - status.st_mtime < SETTLE_SECONDS
            chunk = self._read_lines(data, max_lines, status, at_end=at_end, is_settled=is_settled)
        else:
            chunk = self._read_unfinished_line(data, status, at_end=at_end)
        if at_end:
            self._clock.record_caught_up(time.monotonic())
        return chunk

    def advance(self, chunk: Chunk) -> None:
        """Move the position over a chunk, whose records the caller stores together with the position."""
        self._anchor = self._anchor.extended(chunk.data)
        position = self.position
        key_follows = key_follows_after(chunk.records, key_follows=position.key_follows)
        self.position = FilePosition(
            position.device,
            position.inode,
            offset=position.offset + chunk.size_bytes,
            digest=self._anchor.digest,
            modified_ns=chunk.modified_ns,
            read_at=time.time(),
            skipping=chunk.skipping,
            key_follows=key_follows,
            clock=self._clock.to_store(),
        )
        self._rewrite.record_read(chunk.modified_ns)
        self._incomplete = chunk.incomplete[:CHUNK_BYTES]
        self._unfinished_since = None

    def discard(self) -> None:
        """Drop what was read after the position: the next call of `read` starts afresh there."""
        self._incomplete = b""
        self._unfinished_since = None
        self._clock.restart(self.position.clock)

    def restart(self) -> None:
        """Continue at the beginning of the file, which was truncated or rewritten."""
        # The time of the last change stays that of the reading: a copy that was made since, and contains
        # what was written between the two, must count as newer than this position.
        self.position = replace(FilePosition.at_start(self.status), modified_ns=self.position.modified_ns)
        self._anchor = Anchor()
        self._rewrite.reset()
        self.discard()

    def incomplete_records(self) -> tuple[list[Record], list[int], list[float]]:
        """Return the incomplete bytes as records, with their times, see `Chunk`.

        For a file that was rewritten before they were complete: nothing else contains them.
        """
        records = self._parse(self._incomplete.rstrip(b"\n"))
        return records, *self._clock.times_now(records)

    def skip_if_beginning_of(self, other: Self) -> bool:
        """Move the position to the end if the whole file is a beginning of what was read of another one.

        Returns:
            Whether it is.
        """
        size = self.status.st_size
        if not MIN_COPY_BYTES <= size <= other.position.offset:
            return False
        for offset in range(0, size, CHUNK_BYTES):
            length = min(CHUNK_BYTES, size - offset)
            if os.pread(self._descriptor, length, offset) != os.pread(other._descriptor, length, offset):
                return False
        self._anchor = Anchor.read(self._descriptor, size)
        self.position = replace(self.position, offset=size, digest=self._anchor.digest, read_at=time.time())
        return True

    def is_distinctive(self) -> bool:
        """Return whether the content up to the position occurs only once: it has stamps, or is long."""
        if self.position.offset >= DISTINCTIVE_BYTES:
            return True
        return bool(_STAMP(os.pread(self._descriptor, self.position.offset, 0)))

    def begins_like(self, chunk: Chunk) -> bool:
        """Return whether this file begins with the bytes of a chunk, or is itself a beginning of them."""
        data = os.pread(self._descriptor, len(chunk.data), 0)
        return bool(data) and chunk.data.startswith(data)

    def _is_changed(self) -> bool:
        """Return whether the file no longer contains what was read of it.

        `touch` sets the time of the last change as well, and changes nothing.
        """
        if Anchor.read(self._descriptor, self.position.offset) != self._anchor:
            return True
        self._rewrite.record_read(self.status.st_mtime_ns)
        return False

    def _read_lines(
        self, data: bytes, max_lines: int, status: os.stat_result, *, at_end: bool, is_settled: bool
    ) -> Chunk | None:
        """Return a chunk of complete records; None if the only record may continue.

        Args:
            data: contains at least one newline.
            max_lines: see `read`.
            status: of the file, after the data was read.
            at_end: whether the data reaches to the end of the file.
            is_settled: whether the last record is complete because nothing was added for a while.
        """
        key_follows = self.position.key_follows
        records, size_bytes, incomplete = complete_records(
            data, max_lines, key_follows=key_follows, at_end=at_end, is_settled=is_settled
        )
        if size_bytes == 0:
            self._incomplete = incomplete[:CHUNK_BYTES]
            return None
        return self._make_chunk(records, data[:size_bytes], status, incomplete=incomplete)

    def _read_unfinished_line(self, data: bytes, status: os.stat_result, *, at_end: bool) -> Chunk | None:
        """Return a line without a newline as a chunk if it is overlong, or old; else None.

        Examples: a progress bar never ends its line; a process was killed in the middle of a write.
        """
        if len(data) > MAX_LINE_BYTES:
            return self._make_chunk(self._parse(data[: MAX_LINE_BYTES + 1]), data, status, skipping=True)
        now = time.monotonic()
        if self._unfinished_since is None:
            self._unfinished_since = now
        if not at_end or now - self._unfinished_since < UNFINISHED_SECONDS:
            self._incomplete = data
            return None
        size = size_of_whole_characters(data)
        return self._make_chunk(self._parse(data[:size]), data[:size], status, incomplete=data[size:])

    def _skip_hole(self, data: bytes, status: os.stat_result) -> Chunk:
        """Return a chunk without records that moves the position over NUL bytes.

        Example: the file is truncated while llama-server, which does not append, has written 5 GB. Its next
        line is written at the old offset, and the file system returns NUL bytes for all that precedes it.
        `SEEK_DATA` finds the end of such a hole without reading it.
        """
        nuls = size = len(data) - len(data.lstrip(b"\0"))
        if nuls == len(data):
            try:
                hole_end = os.lseek(self._descriptor, self.position.offset, os.SEEK_DATA)
            except OSError as error:
                # There is no data after the offset, or the file system has no holes.
                if error.errno not in (errno.ENXIO, errno.EINVAL):
                    raise
            else:
                size = max(nuls, hole_end - self.position.offset)
        return Chunk([], [], [], data[:nuls], size, status.st_mtime_ns)

    def _make_chunk(
        self,
        records: list[Record],
        data: bytes,
        status: os.stat_result,
        *,
        skipping: bool = False,
        incomplete: bytes = b"",
    ) -> Chunk:
        """Return a chunk of all of `data`, with the times of its records."""
        offset = self.position.offset
        times, moments = self._clock.times(records, status, offset, offset + len(data))
        return Chunk(records, times, moments, data, len(data), status.st_mtime_ns, skipping, incomplete)

    def _parse(self, line: bytes) -> list[Record]:
        """Return the records of bytes whose last line has no newline."""
        return parse_records(split_lines(line + b"\n"), key_follows=self.position.key_follows)


def open_regular_file(path: Path) -> int:
    """Open a file for reading and return its descriptor.

    Raises:
        OSError: it cannot be opened.
        SourceFailed: it is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # opening a FIFO must not block
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SourceFailed(f"{path} is not a regular file: name the file that llama-server writes")
    return descriptor
