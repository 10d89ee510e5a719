"""Names of rotated log files, and the order in which their files were written. Pure functions: no I/O.

Rotation renames or copies `llama.log` to a name that it can be told from: `llama.log.1`, `llama.1.log`,
`llama.log-20260131`, `llama-2026-01-31.log`, `llama.log.old`; multilog renames `current` to
`@4000000067e4….s`. Files of other programs beside it (`llama.log.notes`, `llama.log2`) do not belong to it.
"""

import re
from collections.abc import Collection, Mapping
from itertools import pairwise
from pathlib import Path

from collector.logs.position import FilePosition, Status, identity_of

_NUMBER_OR_DATE = r"(?![-_]\d{4,5}$)[._-]{1,2}\d[\d.T:_-]*"
"""What a rotation adds to a name. `-8081` and `_9931` are the ports of other servers, and no rotations."""

_ADDED_AT_THE_END = re.compile(rf"(?:{_NUMBER_OR_DATE}|\.old)$")
_ADDED_BEFORE_THE_EXTENSION = re.compile(rf"{_NUMBER_OR_DATE}$")
_MULTILOG = re.compile(r"@[0-9a-f]{24}\.[su]")
MULTILOG_CURRENT = "current"
"""Name of the file into which multilog writes; it renames it to `@4000000067e4….s`."""

_COMPRESSED = (".gz", ".xz", ".bz2", ".zst", ".lz4", ".zip")

Statuses = Mapping[Path, Status]
"""The file at a path, if there is one, and the files beside it that a rotation may have made of it."""


def is_compressed(path: str | Path) -> bool:
    """Return whether the name is that of a compressed file, which is never read."""
    return str(path).endswith(_COMPRESSED)


def is_rotated(path: Path, file: Path) -> bool:
    """Return whether a file has a name to which rotation renames or copies the file at a path."""
    return str(path) in possible_bases(str(file))


def possible_bases(path: str) -> list[str]:
    """Return the paths of which a file may be a rotation, by its name.

    Example: `llama.1.log` may be one of `llama.log`, and `@4000000067e4….s` one of `current`.
    """
    directory, _, name = path.rpartition("/")
    stem, dot, extension = name.rpartition(".")
    bases = [_ADDED_AT_THE_END.sub("", name)]
    if dot and stem:
        bases.append(f"{_ADDED_BEFORE_THE_EXTENSION.sub('', stem)}.{extension}")
    if _MULTILOG.fullmatch(name):
        bases.append(MULTILOG_CURRENT)
    return [f"{directory}/{base}" for base in bases if base not in (name, "", f".{extension}")]


def paths_to_follow(
    paths: Collection[str], known: Collection[str], literal: Collection[str] = ()
) -> list[str]:
    """Return the paths to follow among those that the settings name or match.

    A rotated file is read as one of the files of the path whose name it has, if that path is known: the
    pattern `llama.log*` matches `llama.log` and `llama.log.1`, and both belong to `llama.log`. Where
    `run.1` is the only file of its kind, it is followed itself, and so is what the settings name literally:
    `llama-server` and `llama-server-1` may be two servers.

    Args:
        paths: paths that the settings name, and files that a pattern of the settings matches.
        known: these, and paths that are followed or have a stored position.
        literal: the paths that the settings name.
    """
    chosen = set()
    for path in paths:
        bases = () if path in literal else possible_bases(path)
        chosen.add(next((base for base in bases if base in known), path))
    return sorted(path for path in chosen if not is_compressed(path))


def rotated_after(path: Path, files: Statuses, position: FilePosition) -> list[Path]:
    """Return the rotated files that were written after the file of a position, the oldest first.

    The time of the last change decides. Names do not: of `llama.log.1` and `llama.log.2` either may be the
    older one, depending on the program that rotates. They decide only between files of the same time: the
    clock of a file system counts in steps of some milliseconds, in which several rotations may fall.

    Args:
        path: where llama-server writes; its own file is never in the result.
        files: what is at the path and beside it.
        position: as it was read last.
    """
    rotated = {file: status for file, status in files.items() if is_rotated(path, file)}
    ages = _ages(rotated)
    own = next((file for file, status in rotated.items() if identity_of(status) == position.identity), None)
    if own:
        later = [file for file in rotated if ages[file] > ages[own]]
    else:
        later = [file for file, status in rotated.items() if status.st_mtime_ns > position.modified_ns]
    return sorted(later, key=ages.__getitem__)


def rotated_between(path: Path, files: Statuses, before: FilePosition, position: FilePosition) -> list[Path]:
    """Return the rotated files that were written after one file and before another, the oldest first.

    Args:
        path: where llama-server writes.
        files: what is at the path and beside it.
        before: of the earlier file.
        position: of the later one, which may be at the path or be rotated itself.
    """
    own = [file for file, status in files.items() if identity_of(status) == position.identity]
    is_rotated_itself = any(is_rotated(path, file) for file in own)
    excluded = own + (rotated_after(path, files, position) if is_rotated_itself else [])
    return [file for file in rotated_after(path, files, before) if file not in excluded]


def _ages(rotated: Statuses) -> dict[Path, tuple[int, list[int]]]:
    """Return a sort key of each rotated file that is greater for younger ones: its time, then its name.

    Dates grow with time. Numbers mostly fall (`.2` is older than `.1`), but grow where the times of the files
    show it, as with log4j's `fileIndex = max`.
    """
    numbers = {file: [int(number) for number in re.findall(r"\d+", file.name)] for file in rotated}
    by_time = sorted(rotated, key=lambda file: rotated[file].st_mtime_ns)
    pairs = [
        (numbers[older], numbers[newer])
        for older, newer in pairwise(by_time)
        if rotated[older].st_mtime_ns != rotated[newer].st_mtime_ns
    ]
    grows, falls = sum(one < other for one, other in pairs), sum(one > other for one, other in pairs)
    ages = {}
    for file, status in rotated.items():
        is_date = any(number > _MAX_ROTATION for number in numbers[file])
        youth = numbers[file] if is_date or grows > falls else [-number for number in numbers[file]]
        ages[file] = (status.st_mtime_ns, youth)
    return ages


_MAX_ROTATION = 1900  # greater numbers are years or whole dates
