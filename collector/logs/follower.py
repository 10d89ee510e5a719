"""One path where llama-server writes its log, through all files that have its name one after another.

Long because finding the files and reading them change the same list of open files.
"""

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from itertools import pairwise
from pathlib import Path

from collector.errors import FileRewritten, RotationUnderWay, SourceFailed
from collector.logs.chunk import Chunk
from collector.logs.known_content import open_known_content, open_missed
from collector.logs.listing import FileListing, OtherLogs
from collector.logs.position import FilePosition, Identity, PathPosition, identity_of, position_name
from collector.logs.problems import MISSING, describe_error, warn_of_lost_lines, warn_of_several_writers
from collector.logs.reader import LogSink
from collector.logs.rows.router_events import LogOfRouter
from collector.logs.tail import Tail
from collector.parsers.log.record import Record
from collector.parsers.requests.tracker import RequestTracker
from collector.schema import Row, Write

POLL_BYTES = 2**20
"""Bytes read of one file in one poll at most, so that a long backlog does not delay the other files."""

MAX_TAILS = 5
"""Open files of one path: llama-server continues to write into a renamed file until it is restarted."""

MAX_OPENED = 64
"""Files rotated away unseen that are opened at once; the others follow when these were read."""

LIVE_SECONDS = 10.0
"""What is read so soon after the poll before has just been written."""

MAX_FINISHED = 64
"""Files that are remembered after they were read to their end."""


class PathFollower:
    """Reader of the files of one path.

    `poll` has two parts. The first finds the files, the second reads them, the oldest first.

    Finding:

    1. After a start, the files of the stored positions are opened under the names that they have now
       (`_resume`). Until all of them are found, or are certainly gone, nothing is read.
    2. If another file is at the path than before, `llama.log` was renamed to `llama.log.1` and llama-server
       opened a new one. It is added behind the files that are open. If there were several rotations since
       the last poll, the files between are added before it (`_add_new_file`).

    Reading:

    3. Before a file that is read from its beginning there may be files that were rotated away unseen; they
       are read first (`_find_missed`).
    4. A file that was truncated or rewritten is read from its beginning. What it contained before may be in
       a copy, which is read first (`_restart`).
    5. A renamed file stays open as long as it is among the newest few (`_close_finished`).

    Args:
        path: where llama-server writes.
        sink: where the lines go.
        position: how far it was read when the collector ran last.
        others: knows the other logs; two names may belong to one file.

    Attributes:
        has_more: whether the last poll left something unread.
    """

    def __init__(
        self,
        path: Path,
        sink: LogSink,
        position: PathPosition,
        others: OtherLogs,
    ) -> None:
        self._path = path
        self._sink = sink
        self._others = others
        self._finished = list(position.finished)[-MAX_FINISHED:]
        self._models = position.models
        self._requests = RequestTracker(position.requests)
        self._rows: list[Row] = []
        self._other_rows: list[Write] = []
        self._is_live = False
        self._to_resume = list(position.files)
        self._resumed_identities = {file.identity for file in position.files}
        self._tails: list[Tail] = []  # the oldest file first; the last one is, or was, at the path
        self._polled_at: float | None = None
        self._lost_position: FilePosition | None = None  # of the newest file of the last run, if it is gone
        # Time of change of each empty file at the last search of `_find_missed`, which is not repeated
        # for an unchanged file.
        self._searched_modified_ns: dict[Identity, int] = {}
        self._has_warned_of_writers = False
        # What was at the path when the files were closed to save descriptors; None while they are open.
        self._suspended_at: os.stat_result | None = None
        self.has_more = False

    def poll(self) -> str | None:
        """Read what was added since the last poll; return what is wrong (`describe_error`), or None."""
        if self._suspended_at and not self._is_changed_since_suspension():
            return None
        problem: str | None = None
        self._is_live = not self.has_more and (
            self._polled_at is not None and time.monotonic() - self._polled_at < LIVE_SECONDS
        )
        try:
            self._find_files()
        except (OSError, SourceFailed) as error:
            problem = describe_error(error)
        self._polled_at = time.monotonic() if problem in (None, MISSING) else None
        try:
            self._read_files()  # also where the path is missing: the renamed file is read to its end
        except (OSError, SourceFailed) as error:
            problem = describe_error(error)
        return problem

    @property
    def open_files(self) -> int:
        """Number of files that are open."""
        return len(self._tails)

    def suspend(self) -> None:
        """Close all files until something changes at the path; they are found again by their positions.

        What was read and not stored yet, the beginning of a line, is read again.
        """
        if self._to_resume or not self._tails:
            return
        try:
            self._suspended_at = self._path.stat()
        except OSError:
            return  # it is being rotated
        self._to_resume = [tail.position for tail in self._tails]
        self.close()

    def _is_changed_since_suspension(self) -> bool:
        """Return whether the file at the path is another one, or has changed, or something is unread."""
        before = self._suspended_at
        try:
            now = self._path.stat()
        except OSError:
            return True
        is_unchanged = before is not None and (
            (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns)
            == (before.st_dev, before.st_ino, before.st_size, before.st_mtime_ns)
        )
        if is_unchanged and not self.has_more:
            return False
        self._suspended_at = None
        return True

    def follows(self, identity: Identity) -> bool:
        """Return whether this file is read here."""
        if self._suspended_at:
            return any(position.identity == identity for position in self._to_resume)
        return any(tail.position.identity == identity for tail in self._tails)

    def close(self) -> None:
        """Close all files."""
        while self._tails:
            self._tails.pop().close()

    # Finding files

    def _find_files(self) -> None:
        """Open the files of the stored positions, or the file that is new at the path.

        Raises:
            OSError: there is no file at the path (`FileNotFoundError`), or one cannot be opened.
            SourceFailed: one of them is not a regular file.
        """
        if self._to_resume:
            with suppress(FileNotFoundError):
                self._others.check(self._path)
            self._resume()
        identity = identity_of(self._path.stat())
        if self._to_resume or (self._tails and self._tails[-1].position.identity == identity):
            return
        if self.follows(identity):  # it was renamed, and renamed back
            self._tails.sort(key=lambda tail: tail.position.identity == identity)
            return
        self._others.check(self._path)
        if not self._others.is_followed(identity):
            tail = open_known_content(self._path, self._tails, self._finished)
            if tail is None:
                self._add_new_file(identity)
            else:
                self._replace_by(tail)

    def _resume(self) -> None:
        """Open the files of the stored positions under the names that they have now.

        While there is no file at the path, no position is dropped: its file system may not be mounted yet.
        """
        listing = FileListing(self._path, self._others)
        found = False
        try:
            for position in self._to_resume:
                tail = listing.find(position)
                found = tail is not None
                if tail:
                    self._tails.append(tail)
            missing = len(self._tails) < len(self._to_resume)
            is_certain = (not missing or listing.has_current_file) and listing.is_current()
        except BaseException:
            self.close()
            raise
        if not is_certain:
            self.close()
            return
        if not found:
            self._lost_position = self._to_resume[-1]
            if self._lost_position.offset and not self._others.is_followed(self._lost_position.identity):
                warn_of_lost_lines(self._path)
        self._to_resume = []

    def _add_new_file(self, identity: Identity) -> None:
        """Open the file at the path, and before it the files that were rotated away unseen.

        Example: the last poll read `llama.log`, which is now `llama.log.3`. Then `llama.log.2` and
        `llama.log.1` were never read, and come before the new `llama.log`.

        This is not done for a file that has the inode of a stored position, whose content it does not
        contain. It was truncated: `_find_missed` and `_restart` find the copies.
        """
        listing = FileListing(self._path, self._others)
        before = self._tails[-1].position if self._tails else self._lost_position
        missed: list[Path] = []
        if before and identity not in self._resumed_identities:
            missed = listing.rotated_after(before)[:MAX_OPENED]
        with ExitStack() as opened:
            tails = [
                opened.enter_context(closing(tail))
                for path in missed
                if (tail := open_missed(path, self._finished))
            ]
            if len(missed) < MAX_OPENED:
                tails.append(opened.enter_context(closing(Tail.open(self._path, self._polled_at))))
            if not listing.is_current():
                return
            opened.pop_all()
        self._tails += tails
        self._store()

    def _replace_by(self, tail: Tail) -> None:
        """Continue with a file that contains what was read, after the last file was read to its end.

        Until then its unread lines are in both files, and only the old one is read.
        """
        last = self._tails[-1] if self._tails else None
        is_copy_of_last = last is not None and last.position.digest == tail.position.digest
        if last is not None and is_copy_of_last and last.status.st_size > last.position.offset:
            tail.close()
            return
        self._tails.append(tail)
        if last is not None and is_copy_of_last:
            self._tails.remove(last)
            last.close()
        self._store()

    def _find_missed(self, tail: Tail, chunk: Chunk | None) -> list[Tail]:
        """Open the files that were rotated away unseen before a file that is read from its beginning.

        Example: copytruncate copied `llama.log` to `llama.log.1` and truncated it, twice since the last
        poll. The first copy, now `llama.log.2`, continues what was read; `llama.log.1` was never seen.

        Args:
            tail: the file.
            chunk: what was read of it; None if it is empty, or its first record is incomplete.

        Raises:
            OSError: one of them cannot be opened.
            RotationUnderWay: the files are being renamed, or the file is no longer empty.
        """
        identity, modified_ns = tail.position.identity, tail.status.st_mtime_ns
        if chunk is None and (self._searched_modified_ns.get(identity) == modified_ns or tail.status.st_size):
            return []
        listing = FileListing(self._path, self._others)
        with ExitStack() as opened:
            paths = self._rotated_before(tail, listing)[:MAX_OPENED]
            missed = [
                opened.enter_context(closing(found))
                for path in paths
                if (found := open_missed(path, self._finished))
            ]
            # The newest may be a copy of this very file: copytruncate has copied it, and has just truncated
            # it or is about to. The truncation is detected then, and the copy is found by the position.
            is_copy = bool(chunk and missed and missed[-1].begins_like(chunk))
            if not listing.is_current() or (chunk is None and tail.status.st_size):
                raise RotationUnderWay
            opened.pop_all()
        if is_copy:
            missed.pop().close()
        if chunk is None and not missed:
            self._searched_modified_ns[identity] = modified_ns
        return missed

    def _rotated_before(self, tail: Tail, listing: FileListing) -> list[Path]:
        """Return rotated files between a file and the one before it."""
        index = self._tails.index(tail)
        before = self._tails[index - 1].position if index else self._lost_position or tail.position
        return listing.rotated_between(before, tail.position)

    # Reading files

    def _read_files(self) -> None:
        """Read all open files, the oldest first, and close those that are finished.

        Lines stay in order: while a file has more, those after it wait for the next poll.
        """
        self.has_more = False
        for tail in tuple(self._tails):
            try:
                self._read(tail)
            except FileRewritten:
                self._restart(tail)
            except RotationUnderWay:
                break
            if self.has_more:
                break
        self._close_finished()

    def _read(self, tail: Tail) -> None:
        """Read one file to its end, or until the limit of a poll or of the buffer is reached.

        Raises:
            FileRewritten: the file no longer contains what was read of it.
            RotationUnderWay: see `_find_missed`.
        """
        size_bytes = 0
        is_followed = self._is_followed(tail)
        while size_bytes < POLL_BYTES and (room := self._sink.room) > 0:
            chunk = tail.read(room, is_followed=is_followed)
            if tail.position.offset == 0 and (missed := self._find_missed(tail, chunk)):
                index = self._tails.index(tail)
                self._tails[index:index] = missed
                tail.discard()  # one of them may be a copy that contains it
                break
            if chunk is None:
                return
            self._add(chunk.records, chunk.times, chunk.moments)
            tail.advance(chunk)
            self._store(len(chunk.data))
            size_bytes += chunk.size_bytes
        self.has_more = True

    def _is_followed(self, tail: Tail) -> bool:
        """Return whether a later file has lines: the server writes no longer into this one.

        Until then a renamed file may grow: rotation creates the new one empty.
        """
        return any(one.status.st_size for one in self._tails[self._tails.index(tail) + 1 :])

    def _restart(self, tail: Tail) -> None:
        """Read a file from its beginning: it was truncated or rewritten.

        A copy that contains more than was read is put before it. Without a copy, the incomplete bytes that
        were read are stored as they are, since they are nowhere else.
        """
        listing = FileListing(self._path, self._others)
        copy = listing.find_copy(tail.position)
        if not listing.is_current():
            if copy:
                copy.close()
            return
        if copy:
            self._tails.insert(self._tails.index(tail), copy)
        elif tail.position.offset or not self._rotated_before(tail, listing):  # else these contain the bytes
            self._add(*tail.incomplete_records())
        tail.restart()
        self._searched_modified_ns.pop(tail.position.identity, None)
        self._store()
        self.has_more = True
        if not self._has_warned_of_writers:
            self._has_warned_of_writers = warn_of_several_writers(self._path)

    def _add(self, records: list[Record], times: list[int], moments: list[float]) -> None:
        """Keep the rows of records for the next `_store`."""
        log = LogOfRouter(position_name(self._path), self._is_live)
        router_events = self._sink.router_events(records, moments, self._models, log)
        self._rows, self._models = self._sink.rows(records, times, self._models)
        ended = self._requests.add(records, moments)
        self._other_rows = [self._sink.requests(ended, self._models), router_events]

    def _store(self, size_bytes: int = 0) -> None:
        """Add the rows to the buffer, with the positions of all files."""
        files: Sequence[FilePosition] = [*self._to_resume, *(tail.position for tail in self._tails)]
        position = PathPosition(self._models, files, self._finished, self._requests.to_store()).to_json()
        self._sink.put(self._rows, {position_name(self._path): position}, size_bytes, self._other_rows)
        self._rows, self._other_rows = [], []

    def _close_finished(self) -> None:
        """Close files that were read to their end: the oldest beyond a number, deleted ones later.

        A file stays open until the next one was begun, because both positions are needed to find the files
        that were rotated away between the two. The last one is closed only if it was deleted, and the server
        that wrote it has ended or has opened no new one for a while.
        """
        for tail, following in tuple(pairwise(self._tails)):
            if tail.status.st_size != tail.position.offset or following.position.offset == 0:
                continue
            if tail.is_long_deleted or len(self._tails) > MAX_TAILS:
                self._finish(tail)
        last = self._tails[0] if len(self._tails) == 1 else None
        if last and last.is_long_deleted and last.status.st_size == last.position.offset:
            self._lost_position = last.position
            self._finish(last)

    def _finish(self, tail: Tail) -> None:
        """Close a file that was read to its end, and remember its content."""
        self._tails.remove(tail)
        self._searched_modified_ns.pop(tail.position.identity, None)
        if tail.position.offset:
            self._finished = [*self._finished, tail.position][-MAX_FINISHED:]
        tail.close()
