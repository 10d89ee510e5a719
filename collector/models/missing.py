"""The search for deleted files: those that are missing, except where only their disk is not mounted."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from collector.models.inventory import printable_path
from collector.models.mounts import Mounts, mount_points
from collector.models.storage import ModelFile, StoredInventory
from collector.models.walk import Walk


@dataclass(frozen=True, slots=True)
class MissingFiles:
    """The stored files that a walk did not find.

    Args:
        gone: the files that were certainly deleted or moved, by path.
        messages: one sentence for each disk whose files may come back.
    """

    gone: Mapping[str, ModelFile]
    messages: Sequence[str]


@dataclass(frozen=True, slots=True)
class RemovedRows:
    """The rows of `models` whose file is gone.

    Args:
        ids: of these rows.
        messages: one sentence for each row that is kept because its directory is empty.
    """

    ids: Sequence[str]
    messages: Sequence[str]


def find_missing_files(walk: Walk, stored: Mapping[str, ModelFile], mounts: Mounts) -> MissingFiles:
    """Decide which of the stored files that a walk did not find are gone.

    A file is gone if the disk that it was on is mounted, and every directory above it could be read.

    Args:
        walk: what was found.
        stored: `StoredInventory.files`.
        mounts: the disks that were mounted during the walk.
    """
    # The device name of a disk may change at a boot: sdb1 becomes sdc1. Files that were stored with the one
    # and found with the other show that both names mean the same disk.
    renamed_disks = {
        file.disk: walk.files[path].disk
        for path, file in stored.items()
        if path in walk.files and walk.files[path].disk != file.disk
    }
    gone: dict[str, ModelFile] = {}
    unmounted: Counter[str] = Counter()  # files by disk
    for path, file in stored.items():
        if path in walk.files or not walk.covers(file.found_at) or not walk.could_see(file.found_at):
            continue
        # `disks` is what `FoundFile.disk` would be if the file was found now.
        link_directory = os.path.realpath(os.path.dirname(file.found_at))  # noqa: PTH120
        disks = {mounts.disk_of(link_directory), mounts.disk_of(os.path.dirname(file.path))}  # noqa: PTH120
        if renamed_disks.get(file.disk, file.disk) == "\n".join(sorted(disks)):
            gone[path] = file
        else:
            unmounted[file.disk] += 1
    messages = [
        f"the disk at {printable_path(mount_points(disk))} is not mounted, or another one is: "
        f"what is stored about {count} files on it is kept"
        for disk, count in unmounted.items()
    ]
    return MissingFiles(gone, messages)


def find_removed_rows(
    walk: Walk, missing: MissingFiles, stored: StoredInventory, in_use: AbstractSet[str]
) -> RemovedRows:
    """Return the rows of `models` that are to be deleted because their file is gone.

    Rows of files outside the models directories are never deleted. A row of a file that no scan has seen
    (another program made it) is deleted only if the directory of the file contains anything: an empty
    directory may be the mount point of a disk that is not mounted. The row of a loaded model is kept until it
    is unloaded: a server goes on serving a file that was deleted.

    Args:
        walk: what was found.
        missing: the stored files that were not found.
        stored: what the database contains.
        in_use: ids of the rows whose model was found.
    """
    gone_ids = {file.model_id for file in missing.gone.values()}
    kept_ids = {file.model_id for path, file in stored.files.items() if path not in missing.gone}
    ids: list[str] = []
    messages: list[str] = []
    for row in stored.rows.values():
        if row.id in in_use or row.id in kept_ids or row.model_path is None or row.status == "loaded":
            continue
        if not _is_deleted(walk, row.model_path):
            continue
        if row.id in gone_ids:
            ids.append(row.id)
            continue
        directory = os.path.dirname(row.model_path)  # noqa: PTH120
        while not os.path.isdir(directory):  # noqa: PTH112 - the nearest one that exists
            directory = os.path.dirname(directory)  # noqa: PTH120
        if os.path.realpath(directory) in walk.non_empty:
            ids.append(row.id)
        else:
            messages.append(
                f"{printable_path(directory)} is empty, as when its disk is not mounted: "
                "the models listed there are kept"
            )
    return RemovedRows(ids, messages)


def _is_deleted(walk: Walk, path: str) -> bool:
    """Return whether a path is in the models directories and certainly does not exist."""
    if not walk.covers(path) or not walk.could_see(path):
        return False
    try:
        os.stat(path)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):  # it cannot be checked, or it is not a possible path
        return False
    return False
