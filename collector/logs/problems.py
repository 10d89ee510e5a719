"""What prevents a log file from being read, or from being read completely, in words for the user."""

import os
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import structlog

from collector.errors import SourceFailed

MISSING = "missing"
"""There is no file at the path."""


def describe_error(error: OSError | SourceFailed) -> str:
    """Return what is wrong with a file and what to change; `MISSING` where there is no file."""
    if isinstance(error, SourceFailed):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return MISSING
    if isinstance(error, PermissionError):
        return f"{error.filename} cannot be read: let the user that runs the collector read it"
    return f"{error.filename or 'reading'}: {error.strerror}"


def warn_of_lost_lines(path: Path) -> None:
    """Warn that the file which was read last is gone, with the lines that were still unread."""
    structlog.get_logger().warning(
        f"{path} was replaced while the collector was not running, and its old file is not beside it: "
        "lines that were written into it since may be missing"
    )


def warn_of_several_writers(path: Path) -> bool:
    """Warn if several llama-servers were started with this `--log-file`; return whether it was logged.

    Example: a router passes its `--log-file` on to its children.
    """
    name = os.fsencode(path.name)
    writers = 0
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # the process has ended meanwhile
            arguments = entry.read_bytes().split(b"\0")
            writers += any(f == b"--log-file" and value.endswith(name) for f, value in pairwise(arguments))
    if writers < 2:  # noqa: PLR2004 - several
        return False
    structlog.get_logger().warning(
        f"{path} is written by several llama-server processes at once: each truncates and overwrites what "
        "the others wrote, and no reader can repair that. Start the router without --log-file, under "
        "systemd, and name its unit in [logs] journal_units"
    )
    return True
