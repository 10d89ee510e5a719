"""A wall clock that a test sets while a collector runs; the monotonic clock is the real one."""

import os
import time
from collections.abc import Mapping
from pathlib import Path


class SteppedClock:
    """libfaketime with a file that contains the offset of its processes' wall clock.

    Args:
        directory: directory of that file.
    """

    def __init__(self, directory: Path) -> None:
        self._file = directory / "clock-offset"
        self.offset = 0
        self.set(0)

    @property
    def environment(self) -> Mapping[str, str]:
        """Environment for a process with this clock, in UTC."""
        return os.environ | {
            "LD_PRELOAD": str(_library()),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
            "TZ": "UTC",
        }

    def set(self, offset: int) -> None:
        """Set the clock this many seconds ahead of the true time; a negative number sets it back."""
        written = self._file.with_suffix(".new")
        written.write_text(f"{offset:+d}\n")
        written.rename(self._file)
        self.offset = offset

    def now(self) -> float:
        """Return the time that it shows."""
        return time.time() + self.offset


def _library() -> Path:
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    assert found, "libfaketime is missing: apt-get install faketime"
    return found[0]
