"""The processes that hold a lock on a file, by the kernel's list of locks."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_LOCKS = Path("/proc/locks")


def describe_process(process: int) -> str:
    """Return the id of a process, and its name where that is visible."""
    with suppress(OSError):  # it has ended, or /proc is mounted with hidepid
        name = Path(f"/proc/{process}/comm").read_text(encoding="utf-8", errors="replace").strip()
        return f"process {process} ({name})"
    return f"process {process}"


def read_lock_holders(file: os.stat_result) -> list[int]:
    """Return the ids of the other processes that hold a lock on a file now; empty if they are not visible."""
    try:
        return lock_holders(file, _LOCKS.read_text(encoding="ascii", errors="replace").splitlines())
    except OSError:
        return []


def lock_holders(file: os.stat_result, locks: Iterable[str]) -> list[int]:
    """Return the ids of the other processes that hold a lock on a file.

    Args:
        file: its status.
        locks: the lines of /proc/locks.
    """
    # A line is for example: `3: POSIX  ADVISORY  READ 8123 fd:01:131090 1073741826 1073742335`
    device = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}"
    wanted = f"{device}:{file.st_ino}"
    holders = set()
    for line in locks:
        match line.split():
            case [_, "POSIX" | "OFDLCK" | "FLOCK", _, _, process, found, *_] if (
                found == wanted and int(process) > 0
            ):
                holders.add(int(process))
    return sorted(holders - {os.getpid()})
