"""Whether a file that is not there any more was deleted, or only its disk is away."""

import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from collector.models.inventory import shown_path
from collector.models.mounts import Mounts, mount_points
from collector.models.records import FileRecord, Remembered
from collector.models.walk import Walk


@dataclass(slots=True)
class Missing:
    """What was not found.

    Args:
        gone: records of files that were certainly deleted or moved, by path.
        conditions: why others may come back: sentences to be told when they become true.
    """

    gone: dict[str, FileRecord] = field(default_factory=dict)
    conditions: list[str] = field(default_factory=list)


def missing_files(walk: Walk, records: Mapping[str, FileRecord], mounts: Mounts) -> Missing:
    """Judge the remembered files that a walk did not find.

    A file is gone if the disk it lay on is where it was, and every directory above it could be read.
    """
    missing = Missing()
    renamed_disks = _renamed_disks(walk, records)
    away: dict[str, int] = defaultdict(int)
    for path, record in records.items():
        if path in walk.files or not walk.covers(record.found_at) or not walk.could_see(record.found_at):
            continue
        if renamed_disks.get(record.disk, record.disk) == _disk_now(record, mounts):
            missing.gone[path] = record
        else:
            away[record.disk] += 1
    missing.conditions += [
        f"the disk at {shown_path(mount_points(disk))} is not mounted, or another one is: "
        f"what is known of {count} files on it is kept"
        for disk, count in away.items()
    ]
    return missing


def gone_models(
    walk: Walk,
    missing: Missing,
    known: Remembered,
    in_use: set[str],
) -> list[str]:
    """`models.id` of the rows whose file is gone. May add to the conditions of `missing`.

    Args:
        walk: what was seen.
        missing: what was not.
        known: what the database holds; rows outside the directories are nobody's business here.
        in_use: rows of models that are there.
    """
    gone_ids = {record.model_id for record in missing.gone.values()}
    kept_ids = {record.model_id for path, record in known.records.items() if path not in missing.gone}
    candidates = [row for row in known.models.values() if row.id not in in_use and row.id not in kept_ids]
    return [
        row.id
        for row in candidates
        if _is_missing(walk, row.model_path)
        and (row.id in gone_ids or _is_missing_from_its_place(walk, row.model_path, missing))
    ]


def _renamed_disks(walk: Walk, records: Mapping[str, FileRecord]) -> dict[str, str]:
    """A disk may be known by another name since the last start: files that are as they were show it."""
    return {
        record.disk: walk.files[path].disk
        for path, record in records.items()
        if path in walk.files and walk.files[path].disk != record.disk
    }


def _disk_now(record: FileRecord, mounts: Mounts) -> str:
    named = os.path.realpath(os.path.dirname(record.found_at))  # noqa: PTH120
    directories = (named, os.path.dirname(record.path))  # noqa: PTH120
    return "\n".join(sorted(set(map(mounts.disk_of, directories))))


def _is_missing(walk: Walk, path: str | None) -> bool:
    if path is None or not walk.covers(path) or not walk.could_see(path):
        return False
    try:
        os.stat(path)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):  # it cannot be known, or it is no path at all
        return False
    return False


def _is_missing_from_its_place(walk: Walk, path: str | None, missing: Missing) -> bool:
    """A file that no scan has seen is missing if the directory it should be in holds anything.

    An empty directory may be the place where a disk is to be mounted.
    """
    directory = os.path.dirname(path or "")  # noqa: PTH120
    while not os.path.isdir(directory):  # noqa: PTH112
        directory = os.path.dirname(directory)  # noqa: PTH120
    if os.path.realpath(directory) in walk.filled:
        return True
    missing.conditions.append(
        f"{shown_path(directory)} is empty, as when its disk is not mounted: the models listed there are kept"
    )
    return False
