"""A clock that jumps forward, so that a month passes in minutes."""

import time


class FastClock:
    """A replacement for `time.time` and `time.monotonic` in this process.

    The wall clock stands still between two jumps. The monotonic clock continues, so that waiting and measuring
    within a tick works as usual. It must be installed before the import of modules in which either function is
    the default of an argument.
    """

    def __init__(self) -> None:
        self._monotonic = time.monotonic
        self._now = float(int(time.time()))
        self._jumped = 0.0

    def install(self) -> None:
        """Replace both functions until the end of the process."""
        time.time = lambda: self._now
        time.time_ns = lambda: int(self._now) * 10**9
        time.monotonic = lambda: self._monotonic() + self._jumped

    def jump(self, seconds: float) -> None:
        """Move both clocks forward."""
        self._now += seconds
        self._jumped += seconds
