"""Which disk a directory is on, so that the files of an unmounted disk do not count as deleted."""

import os
import re
from contextlib import suppress
from pathlib import Path

MOUNT_TABLE = Path("/proc/self/mountinfo")
_AUTOMOUNTER = "autofs"  # a placeholder that mounts the real file system on first access; not a disk


class Mounts:
    """The file systems that are mounted at one moment.

    Args:
        mount_table: text of `/proc/self/mountinfo`.
    """

    def __init__(self, mount_table: str) -> None:
        self._devices = {"/": ""}  # by mount point
        for line in mount_table.splitlines():
            fields, _, rest = line.partition(" - ")
            kind, device, *_ = rest.split(" ")
            if kind != _AUTOMOUNTER:  # of several mounts at one point, the last covers the others
                self._devices[_unescape(fields.split(" ")[4])] = _unescape(device)
        self._disks: dict[str, str] = {}  # by mount point

    @classmethod
    def now(cls) -> "Mounts":
        """Read the kernel's list; without one, everything counts as one disk."""
        table = ""
        with suppress(OSError):
            table = os.fsdecode(MOUNT_TABLE.read_bytes())
        return cls(table)

    def disk_of(self, path: str) -> str:
        """Return mount point and identity of the disk that contains a path, separated by a space.

        The identity is the file system's id, which ext4, btrfs and NFS keep over reboots. For a file system
        without one it is the mounted device, whose name may change from one boot to the next.

        Args:
            path: absolute, without symbolic links.
        """
        while path not in self._devices:
            path = os.path.dirname(path)  # noqa: PTH120 - thousands of paths: no objects
        if path not in self._disks:
            self._disks[path] = f"{path} {_file_system_id(path) or self._devices[path]}"
        return self._disks[path]


def mount_points(disks: str) -> str:
    """Return the mount points in some results of `disk_of`, one result a line, for a message."""
    return ", ".join(disk.rpartition(" ")[0] for disk in disks.splitlines())


def _unescape(text: str) -> str:
    """Replace the kernel's escapes: a backslash and the octal code of a character, such as 040 of a space."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), text)


def _file_system_id(directory: str) -> int:
    """Return the id of the file system of a directory; 0 if it has none or cannot be read."""
    try:
        return os.statvfs(directory).f_fsid
    except OSError:
        return 0
