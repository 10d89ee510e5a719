"""The walk through the models directories: every `.gguf` file, and which directories could be read."""

import os
import re
import stat
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from collector.models.mounts import Mounts

SUFFIX = ".gguf"
GREATEST_INTEGER = 2**63 - 1  # that SQLite holds; a file system may know greater ones
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)


class FoundFile(NamedTuple):
    """One file.

    Args:
        path: where it lies, symbolic links resolved.
        found_at: the name under which it was found.
        size_bytes: its size.
        modified_ns: its last change, nanoseconds since 1970.
        inode: its number on its disk, 63 bits of it.
        disk: what `Mounts.disk_of` says of the place, and of the name where that is on another: a line each.
    """

    path: str
    found_at: str
    size_bytes: int
    modified_ns: int
    inode: int
    disk: str


@dataclass(slots=True)
class Walk:
    """What a walk saw.

    Args:
        roots: the directories asked for, each as named and with symbolic links resolved.
        files: by path.
        filled: the directories that were read and hold anything, symbolic links resolved.
        faults: what could not be read, as named, and why.
        blind: the same, as named and with symbolic links resolved.
        complete: False after `stop`.
    """

    roots: tuple[str, ...] = ()
    files: dict[str, FoundFile] = field(default_factory=dict)
    filled: set[str] = field(default_factory=set)
    faults: dict[str, str] = field(default_factory=dict)
    blind: set[str] = field(default_factory=set)
    complete: bool = True

    def covers(self, path: str) -> bool:
        """Whether a path lies in the directories asked for."""
        return any(_is_below(path, root) for root in self.roots)

    def could_see(self, path: str) -> bool:
        """Whether nothing above the path, nor itself, failed to be read."""
        return not any(_is_below(path, fault) for fault in self.blind)


def walk_models(directories: Sequence[Path], mounts: Mounts, stop: threading.Event) -> Walk:
    """Find every file below some directories. Raises nothing: what cannot be read is told in `faults`.

    Symbolic links are followed, each directory is read once, and whatever starts with a dot is left out:
    waste bins, snapshots and downloads lie there.
    """
    named = [str(directory.absolute()) for directory in directories]
    walk = Walk(tuple(dict.fromkeys([*named, *map(os.path.realpath, named)])))
    _Walker(walk, mounts, stop).run(named)
    return walk


def part_of(path: str) -> tuple[str, int, int] | None:
    """The model's name with its directory, the number and the count, if the name is that of one part."""
    match = _PART.fullmatch(path) if "-of-" in path else None
    return (match[1], int(match[2]), int(match[3])) if match else None


class _Walker:
    def __init__(self, walk: Walk, mounts: Mounts, stop: threading.Event) -> None:
        self._walk = walk
        self._mounts = mounts
        self._stop = stop
        self._read: set[tuple[int, int]] = set()  # device and inode of directories
        self._linked: list[str] = []

    def run(self, directories: list[str]) -> None:
        """Directories before links to directories, so that a file has its plainest name."""
        waiting = directories[::-1]
        while (waiting or self._linked) and not self._stop.is_set():
            directory = waiting.pop() if waiting else self._linked.pop()
            try:
                waiting += self._read_directory(directory)
            except OSError as error:
                self._fault(directory, error)
        self._walk.complete = not (waiting or self._linked)

    def _read_directory(self, directory: str) -> list[str]:
        """Take in the files; the directories below."""
        status = os.stat(directory)  # noqa: PTH116 - thousands of paths: no objects
        if (status.st_dev, status.st_ino) in self._read:
            return []
        self._read.add((status.st_dev, status.st_ino))
        real = os.path.realpath(directory)
        disk = self._mounts.disk_of(real)
        prefix = real.rstrip("/") + "/"
        below = []
        with os.scandir(directory) as entries:
            for entry in entries:
                self._walk.filled.add(real)
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.path)
                elif entry.is_symlink():
                    self._take_link(entry, disk)
                elif entry.name.lower().endswith(SUFFIX):
                    self._take(entry, prefix + entry.name, disk)
        return sorted(below, reverse=True)

    def _take_link(self, entry: os.DirEntry[str], disk: str) -> None:
        if self._is_directory(entry):
            self._linked.append(entry.path)
        elif entry.name.lower().endswith(SUFFIX):
            real = os.path.realpath(entry.path)
            target_disk = self._mounts.disk_of(os.path.dirname(real))  # noqa: PTH120
            self._take(entry, real, "\n".join(sorted({disk, target_disk})))

    def _is_directory(self, entry: os.DirEntry[str]) -> bool:
        try:
            return entry.is_dir()
        except OSError as error:  # a link to itself, or to where this user may not look
            self._fault(entry.path, error)
            return False

    def _take(self, entry: os.DirEntry[str], path: str, disk: str) -> None:
        try:
            status = entry.stat()
        except FileNotFoundError:
            return  # removed just now, or a link to nothing
        except OSError as error:
            self._fault(entry.path, error)
            return
        if not stat.S_ISREG(status.st_mode):
            return
        modified_ns, inode = min(status.st_mtime_ns, GREATEST_INTEGER), status.st_ino & GREATEST_INTEGER
        found = FoundFile(path, entry.path, status.st_size, modified_ns, inode, disk)
        known = self._walk.files.get(path)
        if known is None or _plainness(found) < _plainness(known):
            self._walk.files[path] = found

    def _fault(self, path: str, error: OSError) -> None:
        self._walk.faults[path] = error.strerror or str(error)
        self._walk.blind |= {path, os.path.realpath(path)}


def _plainness(found: FoundFile) -> tuple[bool, str]:
    """Of several names of one file the smallest is taken: its own, else the first of the links."""
    return found.found_at != found.path, found.found_at


def _is_below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")
