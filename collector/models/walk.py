"""The walk through the models directories: every `.gguf` file, and what cannot be read."""

import os
import re
import stat
import threading
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from collector.models.mounts import Mounts
from collector.models.ollama import is_ollama_store, read_store

SUFFIX = ".gguf"
MAX_INTEGER = 2**63 - 1
"""Largest integer that SQLite stores; file systems may report larger ones."""

CONTROL_FILES = (".aria2", ".st")
"""Endings of the file that aria2 and axel keep beside a download until it is whole."""

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)


class FoundFile(NamedTuple):
    """One file that a walk found.

    Args:
        path: symbolic links resolved.
        found_at: the path under which it was found.
        size_bytes: its size.
        modified_ns: its last modification, nanoseconds since 1970.
        inode: lower 63 bits of its inode number.
        disk: `Mounts.disk_of` its directory; for a link to another disk, one line for each of the two.
    """

    path: str
    found_at: str
    size_bytes: int
    modified_ns: int
    inode: int
    disk: str


@dataclass(frozen=True, slots=True)
class Walk:
    """Result of a walk.

    Args:
        roots: the models directories, each as configured and with symbolic links resolved.
        files: by path.
        other_names: for the parts of models in several files: further paths that lead to the same file, by
            path. Two revisions in a Hugging Face cache may share a part.
        stated_names: names of models in an Ollama store, by path.
        downloading: the paths of files that another program is downloading.
        non_empty: the directories that were read and are not empty, symbolic links resolved.
        errors: the reason, by path as named, of everything that could not be read.
        unreadable: the paths in `errors`, as named and with symbolic links resolved.
        complete: False after `stop`.
    """

    roots: Sequence[str]
    files: Mapping[str, FoundFile]
    other_names: Mapping[str, Sequence[str]]
    stated_names: Mapping[str, str]
    downloading: AbstractSet[str]
    non_empty: AbstractSet[str]
    errors: Mapping[str, str]
    unreadable: AbstractSet[str]
    complete: bool

    def covers(self, path: str) -> bool:
        """Return whether a path is in one of the models directories."""
        return any(_is_below(path, root) for root in self.roots)

    def could_see(self, path: str) -> bool:
        """Return whether a path, and every directory above it, could be read."""
        return not any(_is_below(path, unreadable) for unreadable in self.unreadable)


def walk_models(directories: Sequence[Path], mounts: Mounts, stop: threading.Event) -> Walk:
    """Return every file below some directories. Raise nothing: what cannot be read is in `Walk.errors`.

    Symbolic links are followed, and each directory is read once. Names that start with a dot are skipped:
    trash, snapshots and unfinished downloads have such names.
    """
    named = [str(directory.absolute()) for directory in directories]
    walker = _Walker(mounts)
    complete = walker.run(named, stop)
    return Walk(
        roots=tuple(dict.fromkeys([*named, *map(os.path.realpath, named)])),
        files=walker.files,
        other_names=walker.other_names,
        stated_names=walker.stated_names,
        downloading=walker.downloading,
        non_empty=walker.non_empty,
        errors=walker.errors,
        unreadable={*walker.errors, *map(os.path.realpath, walker.errors)},
        complete=complete,
    )


def part_of(path: str) -> tuple[str, int, int] | None:
    """Split the path of one part of a model in several files.

    Returns:
        for `/models/big-00002-of-00003.gguf`: `/models/big`, 2, 3. None for the name of a whole model.
    """
    match = _PART.fullmatch(path) if "-of-" in path else None
    return (match[1], int(match[2]), int(match[3])) if match else None


class _Walker:
    """State of one walk: what was found, and which directories were read or are still to be read."""

    def __init__(self, mounts: Mounts) -> None:
        self._mounts = mounts
        self._read: set[tuple[int, int]] = set()  # device and inode of directories
        self._linked_directories: list[str] = []
        self.files: dict[str, FoundFile] = {}
        self.other_names: dict[str, list[str]] = {}
        self.stated_names: dict[str, str] = {}
        self.downloading: set[str] = set()
        self.non_empty: set[str] = set()
        self.errors: dict[str, str] = {}

    def run(self, directories: list[str], stop: threading.Event) -> bool:
        """Read directories until all are read; return False if `stop` was set before.

        Links to directories are followed last: a directory that is in the tree and also linked from it is
        then read under its own name, not under that of the link.
        """
        pending = directories[::-1]
        while (pending or self._linked_directories) and not stop.is_set():
            directory = pending.pop() if pending else self._linked_directories.pop()
            try:
                pending += self._read_directory(directory)
            except OSError as error:
                self._add_error(directory, error)
        return not (pending or self._linked_directories)

    def _read_directory(self, directory: str) -> list[str]:
        """Add the files of a directory; return its subdirectories, the last name first."""
        status = os.stat(directory)  # noqa: PTH116 - thousands of paths: no objects
        if (status.st_dev, status.st_ino) in self._read:
            return []
        self._read.add((status.st_dev, status.st_ino))
        real = os.path.realpath(directory)
        disk = self._mounts.disk_of(real)
        prefix = real.rstrip("/") + "/"
        subdirectories = []
        with os.scandir(directory) as entries:
            for entry in entries:
                self.non_empty.add(real)
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    subdirectories.append(entry.path)
                elif entry.is_symlink():
                    self._add_link(entry, disk)
                elif entry.name.lower().endswith(SUFFIX):
                    self._add_file(entry.path, prefix + entry.name, disk)
                elif entry.name.endswith(CONTROL_FILES):
                    self.downloading.add(prefix + entry.name.rpartition(".")[0])
        if is_ollama_store(subdirectories):
            self._add_ollama_store(directory, disk)
        return sorted(subdirectories, reverse=True)

    def _add_ollama_store(self, directory: str, disk: str) -> None:
        """Add the models of an Ollama store. Its files are named by their hash, which manifests explain."""
        models, errors = read_store(directory)
        for path, name in models.items():
            real = os.path.realpath(path)
            self._add_file(path, real, disk)
            self.stated_names.setdefault(real, name)
        for path, error in errors.items():
            self._add_error(path, error)

    def _add_link(self, entry: os.DirEntry[str], disk: str) -> None:
        """Add a symbolic link, whose own directory is on this disk: a directory to be read, or a file."""
        try:
            is_directory = entry.is_dir()
        except OSError as error:  # a link to itself, or into a directory that this user may not read
            self._add_error(entry.path, error)
            is_directory = False
        if is_directory:
            self._linked_directories.append(entry.path)
        elif entry.name.lower().endswith(SUFFIX):
            real = os.path.realpath(entry.path)
            target_disk = self._mounts.disk_of(os.path.dirname(real))  # noqa: PTH120
            self._add_file(entry.path, real, "\n".join(sorted({disk, target_disk})))

    def _add_file(self, found_at: str, path: str, disk: str) -> None:
        """Add a regular file, unless it was found under a name that is preferred (`_name_rank`)."""
        try:
            status = os.stat(found_at)  # noqa: PTH116
        except FileNotFoundError:
            return  # deleted since the directory was read, or a link to nothing
        except OSError as error:
            self._add_error(found_at, error)
            return
        if not stat.S_ISREG(status.st_mode):
            return
        modified_ns, inode = min(status.st_mtime_ns, MAX_INTEGER), status.st_ino & MAX_INTEGER
        found = FoundFile(path, found_at, status.st_size, modified_ns, inode, disk)
        other = self.files.get(path)
        if other is not None and part_of(found_at):
            names = self.other_names.setdefault(path, [other.found_at])
            names.append(found_at)
        if other is None or _name_rank(found) < _name_rank(other):
            self.files[path] = found

    def _add_error(self, path: str, error: OSError) -> None:
        """Record why a path could not be read."""
        self.errors[path] = error.strerror or str(error)


def _name_rank(found: FoundFile) -> tuple[bool, str]:
    """Return the sort key of the names of one file: its own name is first, then its links by name."""
    return found.found_at != found.path, found.found_at


def _is_below(path: str, directory: str) -> bool:
    """Return whether a path is a directory or in it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")
