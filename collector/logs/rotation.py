"""Names of rotated log files, and the order in which their files were written. Pure functions: no I/O.

Rotation renames or copies `llama.log` to a name that begins with it: `llama.log.1`, which the next rotation
renames to `llama.log.2`; `llama.log-20260131`, `llama.log.2026-01-31T10:00`, which keep their names; or
`llama.log.old`. Files of other programs beside it (`llama.log.notes`, `llama.log2`) do not belong to it.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from collector.logs.position import FilePosition, Status, identity_of

_ROTATED = re.compile(r"(?:[.-]\d[\d.T:_-]*|\.old)$")
_NUMBERED = re.compile(r"\.\d{1,4}")
_COMPRESSED = (".gz", ".xz", ".bz2", ".zst", ".lz4", ".zip")

Statuses = Mapping[Path, Status]
"""The file at a path, if there is one, and the files whose names begin with its name."""


def is_compressed(path: str | Path) -> bool:
    """Return whether the name is that of a compressed file, which is never read."""
    return str(path).endswith(_COMPRESSED)


def is_rotated(path: Path, file: Path) -> bool:
    """Return whether a file has a name to which rotation renames the file at a path."""
    return file.name.startswith(path.name) and bool(_ROTATED.fullmatch(file.name[len(path.name) :]))


def paths_to_follow(paths: Collection[str], known: Collection[str]) -> list[str]:
    """Return the paths to follow among those that the settings name or match.

    A rotated file is read as one of the files of the path whose name it has, if that path is known: the
    pattern `llama.log*` matches `llama.log` and `llama.log.1`, and both belong to `llama.log`. Where
    `run.1` is the only file of its kind, it is followed itself.

    Args:
        paths: paths that the settings name, and files that a pattern of the settings matches.
        known: these, and paths that are followed or have a stored position.
    """
    chosen = set()
    for path in paths:
        base = _ROTATED.sub("", path)
        chosen.add(base if base in known else path)
    return sorted(path for path in chosen if not is_compressed(path))


def rotated_after(path: Path, files: Statuses, position: FilePosition) -> list[Path]:
    """Return the rotated files that were written after the file of a position, the oldest first.

    If the file of the position is itself among them, names decide: after `llama.log.3`, the files
    `llama.log.2` and `llama.log.1` were written. The time of the last change decides where names cannot: the
    file was deleted, or the two names are of different kinds (a number, and a date or `.old`).

    Args:
        path: where llama-server writes; its own file is never in the result.
        files: what is at the path and beside it.
        position: as it was read last.
    """
    rotated = [file for file in files if is_rotated(path, file)]
    own = next((file for file in rotated if identity_of(files[file]) == position.identity), None)
    own_kind, own_age = _age(path, own) if own else (None, [])
    later = []
    for file in rotated:
        kind, age = _age(path, file)
        is_later = age < own_age if kind == own_kind else files[file].st_mtime_ns > position.modified_ns
        if is_later:
            later.append(file)
    return sorted(later, key=lambda file: _age(path, file), reverse=True)


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


def _age(path: Path, file: Path) -> tuple[bool, list[int]]:
    """Return a sort key that is greater for older files, with the kind of name as its first part.

    Numbers grow with age (`.2` is older than `.1`), dates do not (`-20260101` is older than `-20260102`).
    """
    suffix = file.name[len(path.name) :]
    if _NUMBERED.fullmatch(suffix):
        return False, [int(suffix[1:])]
    return True, [-ord(character) for character in suffix]
