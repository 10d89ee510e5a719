"""Which processes write a log file."""

import os
from itertools import pairwise
from pathlib import Path


def count_writers(path: Path) -> int:
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
