"""Reads llama-server's log files, each line once, through rotations, truncations and restarts.

Promised: each line that was in a file while that file, or a renamed or copied one beside it, could be
read comes into `logs` exactly once. Not promised: what is written between the copy and the truncation of
copytruncate, or into a file that is gone before it was looked at; and a file that was written anew,
unseen, with byte for byte the same beginning cannot be told from the old one.
"""

import glob
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, closing, suppress
from itertools import pairwise
from pathlib import Path

import structlog

from collector.errors import FileRewritten, RotationUnderWay, SourceAbsent, SourceFailed
from collector.health import OK, State
from collector.logs.reader import LogSink
from collector.logs.tail import Identity, Mark, Piece, Tail
from collector.schema import Row

POLL_BYTES = 2**20
"""Read of one file in one poll at most, so that each file has its turn."""

LOOKS_A_SEARCH = 10
"""The patterns are searched for new files at every tenth poll."""

MAX_TAILS = 5
"""Renamed files that are still looked at, for llama-server writes on into a renamed file."""

MAX_OPENED = 64
"""Files that were rotated away unseen and are opened at once; the others follow."""

DELETED_SECONDS = 300
"""A deleted file is held open this long after its last line; until then its space is not free."""

COPY_SLACK_SECONDS = 1.0

_ROTATED = re.compile(r"(?:[.-]\d[\d.T:_-]*|\.old)$")
_COMPRESSED = (".gz", ".xz", ".bz2", ".zst", ".lz4", ".zip")

MISSING = "missing"
_NOTHING_STORED = '{"models": {}, "files": []}'

IsFollowed = Callable[[Identity], bool]
Files = dict[Path, os.stat_result]


class LogFileReader:
    """All log files that the settings name.

    Args:
        patterns: paths, with wildcards or without; `~` is the home directory.
        sink: where the lines go.
        positions: the stored ones, by name.
    """

    name = "log_files"

    def __init__(self, patterns: Iterable[str], sink: LogSink, positions: Mapping[str, str]) -> None:
        # Path.expanduser raises where there is no home directory.
        self._patterns = [os.path.abspath(os.path.expanduser(p)) for p in patterns]  # noqa: PTH100, PTH111
        self._sink = sink
        self._positions = positions
        self._followers: dict[str, _Follower] = {}
        self._looks = 0
        self.behind = False

    def poll(self) -> State:
        """Read what has come.

        Raises:
            SourceAbsent: none of the files is there.
            SourceFailed: files cannot be read; the others were.
        """
        if self._looks % LOOKS_A_SEARCH == 0:
            self._search()
        self._looks += 1
        problems = {path: follower.poll() for path, follower in self._followers.items()}
        self.behind = any(follower.behind for follower in self._followers.values())
        return self._state([(path, problem) for path, problem in problems.items() if problem])

    def close(self) -> None:
        """Close all files."""
        for follower in self._followers.values():
            follower.close()
        self._followers.clear()

    def _state(self, problems: list[tuple[str, str]]) -> State:
        missing = [path for path, problem in problems if problem == MISSING]
        failures = [problem for _, problem in problems if problem != MISSING]
        if failures:
            raise SourceFailed("; ".join(failures))
        if len(missing) == len(self._followers):
            where = ", ".join(missing or self._patterns)
            raise SourceAbsent(
                f"no log file yet: {where}. Start llama-server with --log-file, or mend [logs] files"
            )
        if missing:
            return State("waiting", f"no file yet: {', '.join(missing)}")
        return OK

    def _search(self) -> None:
        for path in self._found():
            if path not in self._followers:
                position = self._positions.get(path) or self._moved_from(Path(path))
                self._followers[path] = _Follower(Path(path), self._sink, position, self._is_followed)

    def _moved_from(self, path: Path) -> str | None:
        """The position of a file that bore another name when the collector ran last."""
        inode = path.stat().st_ino if path.is_file() else None
        for name, position in self._positions.items():
            for mark in [Mark(**mark) for mark in json.loads(position).get("files", ())]:
                if mark.inode == inode and mark.offset and not Path(name).exists():
                    with suppress(OSError):
                        if tail := Tail.resume(path, mark):
                            tail.close()
                            return json.dumps(json.loads(position) | {"files": [mark.to_json()]})
        return None

    def _found(self) -> list[str]:
        """Paths to follow: rotated files belong to the file whose name they bear."""
        literal = {path for path in self._patterns if not glob.has_magic(path) or Path(path).exists()}
        wild = [pattern for pattern in self._patterns if pattern not in literal]
        matches = {m for pattern in wild for m in glob.iglob(pattern) if Path(m).is_file()}  # noqa: PTH207
        known = literal | matches | self._followers.keys() | self._positions.keys()
        bases = {path: _ROTATED.sub("", path) for path in literal | matches}
        chosen = {base if base != path and base in known else path for path, base in bases.items()}
        return sorted(path for path in chosen if not path.endswith(_COMPRESSED))

    def _is_followed(self, identity: Identity) -> bool:
        return any(follower.follows(identity) for follower in self._followers.values())


class _Follower:
    """One configured path, through all the files that bear its name one after another.

    Args:
        path: where llama-server writes.
        sink: where the lines go.
        position: the stored one; None where there is none.
        is_followed: whether some follower reads that file.
    """

    def __init__(self, path: Path, sink: LogSink, position: str | None, is_followed: IsFollowed) -> None:
        self._path = path
        self._sink = sink
        self._is_followed = is_followed
        stored = json.loads(position or _NOTHING_STORED)
        self._models = {int(port): model for port, model in stored["models"].items()}
        self._pending = [Mark(**mark) for mark in stored["files"]]
        self._old = {mark.identity for mark in self._pending}
        self._tails: list[Tail] = []  # the oldest first; the last one is, or was, at the path
        self._looked_at: float | None = None
        self._lost: Mark | None = None  # the last file of the last run, where it is gone
        self._told_shared = False
        self.behind = False

    def poll(self) -> str | None:
        """Read what has come; what is wrong, or None."""
        problem = _problem_of(self._find_files)
        seen = problem in (None, MISSING)
        self._looked_at = time.monotonic() if seen else None
        return _problem_of(self._read_all) or problem

    def follows(self, identity: Identity) -> bool:
        """Whether this is one of its files."""
        return any(tail.mark.identity == identity for tail in self._tails)

    def close(self) -> None:
        """Close its files."""
        for tail in self._tails:
            tail.close()
        self._tails.clear()

    # Which files there are

    def _find_files(self) -> None:
        if self._pending:
            self._resume()
        status = self._path.stat()
        identity = status.st_dev, status.st_ino
        if self._pending or (self._tails and self._tails[-1].mark.identity == identity):
            return
        if self.follows(identity):
            self._tails.sort(key=lambda tail: tail.mark.identity == identity)  # it was renamed back
        elif not self._is_followed(identity):
            self._take_over(identity)

    def _take_over(self, identity: Identity) -> None:
        """Another file is at the path: it comes after those that were rotated away unseen."""
        files = self._files()
        before = self._tails[-1].mark if self._tails else self._lost
        is_fresh = identity not in self._old  # else it was truncated, and its first piece tells its copies
        missed = self._newer_than(before, files)[:MAX_OPENED] if before and is_fresh else []
        whole = len(missed) < MAX_OPENED
        with ExitStack() as opened:
            tails = [opened.enter_context(closing(Tail.open(path))) for path in missed]
            if whole:
                tails.append(opened.enter_context(closing(Tail.open(self._path, self._looked_at))))
            if not self._unchanged(files):
                return  # the next poll looks again
            opened.pop_all()
        self._tails += tails
        self._store([])

    def _resume(self) -> None:
        """Find the files of the last run again, where they are and where they were renamed or copied to.

        While the path is missing nothing is given up: its file system may not be mounted yet.
        """
        files = self._files()
        try:
            located = [self._locate(mark, files) for mark in self._pending]
        except BaseException:
            self.close()
            raise
        if (None in located and self._path not in files) or not self._unchanged(files):
            self.close()
            return
        if located[-1] is None:
            self._lost = self._pending[-1]
            self._tell_lost(self._lost)
        self._pending = []

    def _unchanged(self, files: Files) -> bool:
        """Whether no rotation was under way while we looked; else it is for the next poll to look again."""
        return _identities(self._files()) == _identities(files)

    def _locate(self, mark: Mark, files: Files) -> Tail | None:
        """Open the file of a mark, found by its inode, else by what it holds, as the newest tail."""
        for path, status in files.items():
            free = not self._is_followed((status.st_dev, status.st_ino))
            if free and status.st_ino == mark.inode and (tail := Tail.resume(path, mark)):
                self._tails.append(tail)
                return tail
        if tail := self._copy_of(mark, files):
            self._tails.append(tail)
        return tail

    def _copy_of(self, mark: Mark, files: Files) -> Tail | None:
        """A file of another inode that holds what was read up to the mark, made since."""
        for path, status in files.items():
            made_since = status.st_ctime >= mark.read_at - COPY_SLACK_SECONDS
            followed = self._is_followed((status.st_dev, status.st_ino))
            if mark.offset == 0 or status.st_size < mark.offset or not made_since or followed:
                continue
            with suppress(OSError, SourceFailed):  # gone meanwhile, or not ours to read: no copy for us
                if tail := Tail.resume(path, mark):
                    return tail
        return None

    def _missed_before(self, tail: Tail, piece: Piece | None) -> list[Tail]:
        """Files that were rotated away unseen before this one, which is empty or gave a first piece.

        Raises:
            OSError: one of them cannot be opened.
            RotationUnderWay: a rotation is under way.
        """
        modified_ns = tail.status.st_mtime_ns
        if piece is None and (tail.empty_since_ns == modified_ns or tail.status.st_size):
            return []
        files = self._files()
        with ExitStack() as opened:
            candidates = self._candidates(tail, files)[:MAX_OPENED]
            missed = [opened.enter_context(closing(Tail.open(path))) for path in candidates]
            if piece and missed and missed[-1].is_copy_of(piece):
                missed.pop()  # copytruncate is about to truncate, or has just: then the copy is found
            if not self._unchanged(files) or (piece is None and tail.status.st_size):
                raise RotationUnderWay
            opened.pop_all()
        tail.empty_since_ns = None if piece or missed else modified_ns
        return missed

    def _candidates(self, tail: Tail, files: Files) -> list[Path]:
        """Rotated files between this one and the one before."""
        place = self._tails.index(tail)
        before = self._tails[place - 1].mark if place else self._lost or tail.mark
        own = any(
            _identity(status) == tail.mark.identity for path, status in files.items() if self._rotation(path)
        )
        later = self._newer_than(tail.mark, files) if own else []
        return [path for path in self._newer_than(before, files) if path not in later]

    def _newer_than(self, mark: Mark, files: Files) -> list[Path]:
        """Rotated files that came after that one, the oldest first."""
        rotated = {path: status for path, status in files.items() if self._rotation(path)}
        own = next((path for path, status in rotated.items() if _identity(status) == mark.identity), None)
        newer = []
        for path in sorted(rotated, key=self._age, reverse=True):
            status = rotated[path]
            comparable = own and self._age(path)[0] == self._age(own)[0]
            if (
                self._age(path) < self._age(own)
                if own and comparable
                else status.st_mtime_ns > mark.modified_ns
            ):
                newer.append(path)
        return [path for path in newer if not self._is_followed((rotated[path].st_dev, rotated[path].st_ino))]

    def _rotation(self, path: Path) -> str:
        """What rotation has put behind the name; empty for the path itself and for other programs' files."""
        suffix = path.name[len(self._path.name) :]
        return suffix if _ROTATED.fullmatch(suffix) else ""

    def _age(self, path: Path) -> tuple[bool, int, list[int]]:
        """Greater for older files, by their names: `.2` is older than `.1`, 20260101 than 20260102."""
        suffix = self._rotation(path)
        if re.fullmatch(r"\.\d{1,4}", suffix):
            return False, int(suffix[1:]), []
        return True, 0, [-ord(character) for character in suffix]

    def _files(self) -> Files:
        """The file at the path, if there is one, then those whose names begin with its name."""
        beside = sorted(glob.iglob(f"{glob.escape(str(self._path))}?*"))  # noqa: PTH207 - Path.glob needs a relative pattern
        files: Files = {}
        for path in (self._path, *map(Path, beside)):
            with suppress(FileNotFoundError):
                if path.suffix not in _COMPRESSED:
                    files[path] = path.stat()
        return files

    # Reading them

    def _read_all(self) -> None:
        self.behind = False
        for tail in tuple(self._tails):
            try:
                self._read(tail)
            except FileRewritten:
                self._begin_anew(tail)
            except RotationUnderWay:
                break  # the next poll looks again, and the later files come after this one
        if len(self._tails) > 1:
            self._drop_finished()

    def _read(self, tail: Tail) -> None:
        done = 0
        while done < POLL_BYTES and (room := self._sink.room) > 0:
            piece = tail.read(room)
            if tail.mark.offset == 0 and (missed := self._missed_before(tail, piece)):
                place = self._tails.index(tail)
                self._tails[place:place] = missed  # they come first
                tail.forget_held()  # it may stand in one of them
                break
            if piece is None:
                return
            rows = self._sink.rows(piece.records, piece.times, self._models)
            tail.advance(piece)
            self._store(rows, len(piece.data))
            done += piece.size_bytes
        self.behind = True

    def _begin_anew(self, tail: Tail) -> None:
        """A truncated file: the rest of what it held may stand in a copy beside it."""
        rows: list[Row] = []
        files = self._files()
        copy = self._copy_of(tail.mark, files)
        if not self._unchanged(files):
            _close([copy] if copy else [])
            return
        if copy:
            self._tails.insert(self._tails.index(tail), copy)
        elif tail.mark.offset or not self._candidates(tail, files):  # else a copy holds them
            rows = self._sink.rows(*tail.last_words(), self._models)
        tail.restart()
        self._store(rows)
        self.behind = True
        self._tell_if_shared()

    def _store(self, rows: list[Row], size_bytes: int = 0) -> None:
        files = [*self._pending, *(tail.mark for tail in self._tails)]
        position = json.dumps({"models": self._models, "files": [mark.to_json() for mark in files]})
        self._sink.put(rows, str(self._path), position, size_bytes)

    def _drop_finished(self) -> None:
        """Renamed files that have been read: beyond a number, and deleted ones after a while.

        Not before the next one was begun, for what came between the two is told by both.
        """
        for tail, following in tuple(pairwise(self._tails)):
            status = tail.status
            if status.st_size != tail.mark.offset or following.mark.offset == 0:
                continue
            is_deleted = status.st_nlink == 0 and time.time() - status.st_mtime > DELETED_SECONDS
            if is_deleted or len(self._tails) > MAX_TAILS:
                self._tails.remove(tail)
                tail.close()

    # What the user is told once

    def _tell_lost(self, mark: Mark) -> None:
        if mark.offset and not self._is_followed(mark.identity):
            structlog.get_logger().warning(
                f"{self._path} was replaced while nobody looked, and its old file is not beside it: "
                "lines that were written into it since may be missing"
            )

    def _tell_if_shared(self) -> None:
        if not self._told_shared and _writers_of(self._path) > 1:
            self._told_shared = True
            structlog.get_logger().warning(
                f"{self._path} is written by several llama-server processes at once: each truncates and "
                "overwrites what the others wrote, and no reader can mend that. Start the router without "
                "--log-file, under systemd, and name its unit in [logs] journal_units"
            )


def _problem_of(action: Callable[[], None]) -> str | None:
    try:
        action()
    except FileNotFoundError:
        return MISSING
    except PermissionError as error:
        return f"{error.filename} cannot be read: let the user that runs the collector read it"
    except OSError as error:
        return f"{error.filename or 'reading'}: {error.strerror}"
    except SourceFailed as error:
        return str(error)
    return None


def _identity(status: os.stat_result | None) -> Identity | None:
    return (status.st_dev, status.st_ino) if status else None


def _identities(files: Files) -> dict[Path, Identity | None]:
    return {path: _identity(status) for path, status in files.items()}


def _close(tails: Iterable[Tail]) -> None:
    for tail in tails:
        tail.close()


def _writers_of(path: Path) -> int:
    """How many processes were started with this file as --log-file."""
    name = os.fsencode(path.name)
    count = 0
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = entry.read_bytes().split(b"\0")
        except OSError:
            continue  # it ended meanwhile
        count += any(flag == b"--log-file" and value.endswith(name) for flag, value in pairwise(arguments))
    return count
