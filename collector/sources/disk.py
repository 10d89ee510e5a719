"""The partition of the models directory: a separate source, because a network file system may hang."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from collector.errors import SourceFailed
from collector.schema import BYTES_PER_MB, SqlValue, Table
from collector.sources.base import Reading, Tick


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """Space on one partition, in MB of 1,048,576 bytes; `usage` is the percentage that `df` shows."""

    total_mb: float
    used_mb: float
    free_mb: float
    usage: float


class DiskSource:
    """The source of the space on the partition of a directory.

    Args:
        directory: the directory; if it does not exist, its nearest existing parent is read.
    """

    name = "disk"
    tables: tuple[Table, ...] = ()
    defaults: Mapping[str, SqlValue] = {"disk_usage": None}

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def read(self, _tick: Tick) -> Reading[DiskSpace]:
        """Return the space on the partition, in MB.

        Raises:
            SourceFailed: the file system does not answer.
        """
        for directory in (self._directory, *self._directory.parents):
            try:
                usage = psutil.disk_usage(str(directory))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise SourceFailed(f"{directory}: {error.strerror}") from error
            space = DiskSpace(
                usage.total / BYTES_PER_MB,
                usage.used / BYTES_PER_MB,
                usage.free / BYTES_PER_MB,
                usage.percent,
            )
            return Reading(space, snapshot={"disk_usage": space.usage})
        raise SourceFailed(f"{self._directory}: not even / can be read")

    def close(self) -> None:
        """Do nothing: nothing is kept open."""
