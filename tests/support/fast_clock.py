"""A clock that leaps, so that a month passes in minutes."""

import time


class FastClock:
    """Stands in for `time.time` and `time.monotonic` of this process.

    The wall clock shows what the last leap led to. The monotonic clock runs on between two leaps: waiting and
    measuring within a tick is as ever. To be installed before modules that keep either function in a default.
    """

    def __init__(self) -> None:
        self._monotonic = time.monotonic
        self._now = float(int(time.time()))
        self._leapt = 0.0

    def install(self) -> None:
        """Replace both functions until the end of the process."""
        time.time = lambda: self._now
        time.time_ns = lambda: int(self._now) * 10**9
        time.monotonic = lambda: self._monotonic() + self._leapt

    def leap(self, seconds: float) -> None:
        """Let so much time pass at once."""
        self._now += seconds
        self._leapt += seconds
