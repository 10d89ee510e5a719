"""What prevents a log file from being read, or from being read completely, in words for the user."""

import os
from itertools import pairwise
from pathlib import Path

import structlog

from collector.errors import SourceFailed

MISSING = "missing"
"""There is no file at the path."""


def describe_error(error: OSError | SourceFailed) -> str:
    """Return what is wrong and what to change; `MISSING` where there is no file."""
    if isinstance(error, SourceFailed):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return MISSING
    if isinstance(error, PermissionError):
        return f"{error.filename} cannot be read: let the user that runs the collector read it"
    return f"{error.filename or 'reading'}: {error.strerror}"


def warn_of_lost_lines(path: Path) -> None:
    """Log that the file which was read last has disappeared."""
    structlog.get_logger().warning(
        f"{path} was replaced while the collector was not running, and its old file is not beside it: "
        "lines that were written into it since may be missing"
    )


def warn_of_several_writers(path: Path) -> bool:
    """Log that several processes write a file, if they do; return whether it was logged.

    Example: a router passes its `--log-file` on to its children.
    """
    if _count_writers(path) < 2:  # noqa: PLR2004 - several
        return False
    structlog.get_logger().warning(
        f"{path} is written by several llama-server processes at once: each truncates and overwrites what "
        "the others wrote, and no reader can repair that. Start the router without --log-file, under "
        "systemd, and name its unit in [logs] journal_units"
    )
    return True


def _count_writers(path: Path) -> int:
    """Return the number of processes that were started with this file as `--log-file`."""
    name = os.fsencode(path.name)
    count = 0
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = entry.read_bytes().split(b"\0")
        except OSError:
            continue  # the process has ended meanwhile
        count += any(flag == b"--log-file" and value.endswith(name) for flag, value in pairwise(arguments))
    return count
