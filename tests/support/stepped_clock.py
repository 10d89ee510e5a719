"""A wall clock that a test sets while a collector runs; the monotonic clock goes on as it does in truth."""

import os
import time
from collections.abc import Mapping
from pathlib import Path


class SteppedClock:
    """libfaketime, told by a file how far its processes' wall clock is off.

    Args:
        directory: where that file is put.
    """

    def __init__(self, directory: Path) -> None:
        self._file = directory / "clock-offset"
        self.offset = 0
        self.set(0)

    @property
    def environment(self) -> Mapping[str, str]:
        """For a process that is to live by this clock, in UTC."""
        return os.environ | {
            "LD_PRELOAD": str(_library()),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
            "TZ": "UTC",
        }

    def set(self, offset: int) -> None:
        """Put the clock so many seconds before the true time; behind it where negative."""
        written = self._file.with_suffix(".new")
        written.write_text(f"{offset:+d}\n")
        written.rename(self._file)
        self.offset = offset

    def now(self) -> float:
        """What it shows."""
        return time.time() + self.offset


def _library() -> Path:
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    assert found, "libfaketime is missing: apt-get install faketime"
    return found[0]
