"""Which disk a directory lies on: so that a disk that is not mounted is not taken for deleted files."""

import os
import re
from contextlib import suppress
from pathlib import Path

MOUNT_TABLE = Path("/proc/self/mountinfo")
_AUTOMOUNTER = "autofs"  # stands where a disk comes when it is asked for, and is none itself


class Mounts:
    """The disks that are mounted now.

    Args:
        mount_table: text of `/proc/self/mountinfo`.
    """

    def __init__(self, mount_table: str) -> None:
        self._sources = {"/": ""} | _sources(mount_table)
        self._identities: dict[str, str] = {}

    @classmethod
    def now(cls) -> "Mounts":
        """As the kernel lists them; one disk for everything where it does not say."""
        table = ""
        with suppress(OSError):
            table = os.fsdecode(MOUNT_TABLE.read_bytes())
        return cls(table)

    def disk_of(self, path: str) -> str:
        """Where the disk of an absolute path without symbolic links is mounted, and which disk it is.

        Stays the same over reboots where the file system knows itself, as ext4, btrfs and NFS do.
        """
        while path not in self._sources:
            path = os.path.dirname(path)  # noqa: PTH120 - thousands of paths: no objects
        if path not in self._identities:
            self._identities[path] = f"{path} {_file_system_id(path) or self._sources[path]}"
        return self._identities[path]


def mount_points(disks: str) -> str:
    """The directories in what `disk_of` said, a line each."""
    return ", ".join(disk.rpartition(" ")[0] for disk in disks.splitlines())


def _sources(mount_table: str) -> dict[str, str]:
    """What is mounted where; of several mounts at one place the last covers the others."""
    sources = {}
    for line in mount_table.splitlines():
        fields, _, rest = line.partition(" - ")
        kind, source, *_ = rest.split(" ")
        if kind != _AUTOMOUNTER:
            sources[_unescaped(fields.split(" ")[4])] = _unescaped(source)
    return sources


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), text)


def _file_system_id(directory: str) -> int:
    try:
        return os.statvfs(directory).f_fsid
    except OSError:
        return 0
