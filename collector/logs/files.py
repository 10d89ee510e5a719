"""Reads llama-server's log files, each line once, through rotations, truncations and restarts.

What is guaranteed: each line that was in a file while that file, or a renamed or copied one beside it, could
be read is stored in `logs` exactly once.

What cannot be guaranteed: lines that are written between the copy and the truncation of copytruncate; lines
of a file that is deleted before it was read; and a file that was rewritten while the collector was not
running, with byte for byte the same beginning, cannot be distinguished from the old one.
"""

import glob
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from collector.errors import SourceAbsent, SourceFailed
from collector.health import OK, State
from collector.logs.follower import PathFollower
from collector.logs.guard import FileGuard, OwnFiles
from collector.logs.position import Identity, PathPosition, position_name
from collector.logs.problems import MISSING
from collector.logs.reader import LogSink
from collector.logs.rotation import paths_to_follow
from collector.logs.tail import Tail

MAX_OPEN_FILES = 48
"""Open log files of all paths together; the files of one path are at most a few more for a moment."""

SEARCH_POLLS = 10
"""New files that match a pattern are searched for at every tenth poll."""


class LogFileReader:
    """All log files that the settings name.

    Args:
        patterns: paths, with or without wildcards; `~` is the home directory.
        sink: where the lines go.
        positions: the stored ones, by name.
        own_files: returns the collector's own files and secrets, which are never read.
    """

    name = "log_files"

    def __init__(
        self,
        patterns: Iterable[str],
        sink: LogSink,
        positions: Mapping[str, str],
        own_files: OwnFiles = tuple,
    ) -> None:
        self._guard = FileGuard(own_files)
        # Path.expanduser raises where there is no home directory.
        self._patterns = [os.path.abspath(os.path.expanduser(p)) for p in patterns]  # noqa: PTH100, PTH111
        self._sink = sink
        self._positions = positions
        self._followers: dict[str, PathFollower] = {}
        self._polls = 0
        self.has_more = False

    def poll(self) -> State:
        """Read what was added since the last poll.

        Raises:
            SourceAbsent: none of the files exists.
            SourceFailed: some of the files cannot be read; the others were read.
        """
        if self._polls % SEARCH_POLLS == 0:
            self._add_followers()
        self._polls += 1
        problems = self._poll_all()
        self.has_more = any(follower.has_more for follower in self._followers.values())
        missing = [path for path, problem in problems.items() if problem == MISSING]
        failures = [problem for problem in problems.values() if problem and problem != MISSING]
        if failures:
            raise SourceFailed("; ".join(failures))
        if len(missing) == len(self._followers):
            paths = ", ".join(missing or self._patterns)
            raise SourceAbsent(
                f"no log file yet: {paths}. Start llama-server with --log-file, or fix [logs] files"
            )
        return State("waiting", f"no file yet: {', '.join(missing)}") if missing else OK

    def _poll_all(self) -> dict[str, str | None]:
        """Poll each path; return what is wrong with it.

        A pattern may match a thousand files. Where too many are open, those of a path are closed again.
        """
        problems = {}
        open_files = sum(follower.open_files for follower in self._followers.values())
        for path, follower in self._followers.items():
            open_files -= follower.open_files
            problems[path] = follower.poll()
            if open_files + follower.open_files > MAX_OPEN_FILES:
                follower.suspend()
            open_files += follower.open_files
        return problems

    def close(self) -> None:
        """Close all files."""
        for follower in self._followers.values():
            follower.close()
        self._followers.clear()

    def _add_followers(self) -> None:
        """Create a follower for each path that the settings name or match and that has none yet."""
        literal = {path for path in self._patterns if not glob.has_magic(path) or Path(path).exists()}
        wild = [pattern for pattern in self._patterns if pattern not in literal]
        matches = {m for pattern in wild for m in glob.iglob(pattern) if Path(m).is_file()}  # noqa: PTH207
        paths = literal | matches
        known = paths | self._followers.keys() | self._positions.keys()
        for path in paths_to_follow(paths, known, literal):
            if path not in self._followers:
                if stored := self._positions.get(position_name(path)):
                    position = PathPosition.from_json(stored)
                else:
                    position = self._position_of_renamed(Path(path))
                self._followers[path] = PathFollower(Path(path), self._sink, position, self)

    def _position_of_renamed(self, path: Path) -> PathPosition:
        """Return the position of a file that had another name when the collector ran last.

        Example: the pattern is `run-*.log`, and `run-new.log`, which was read, is now `run-7.log`.
        """
        inode = path.stat().st_ino if path.is_file() else None
        for name, stored in self._positions.items():
            position = PathPosition.from_json(stored)  # that of the journal contains no files
            for file in position.files:
                if file.inode == inode and file.offset and not Path(name).exists():
                    with suppress(OSError):
                        if tail := Tail.resume(path, file):
                            tail.close()
                            return replace(position, files=[file])
        return PathPosition()

    def is_log(self, path: Path) -> bool:
        """Return whether a path is followed as a log of its own."""
        return str(path) in self._followers

    def is_followed(self, identity: Identity) -> bool:
        """Return whether a follower reads this file, under whichever name, or it is the collector's own."""
        return self._guard.is_own(identity) or any(
            follower.follows(identity) for follower in self._followers.values()
        )

    def check(self, path: Path) -> None:
        """Check that the file at a path may be read.

        Raises:
            SourceFailed: it may not.
        """
        self._guard.check(path)
