"""Whether the wall clock may decide what is too old.

A machine without a battery for its clock, or with a wrong one, starts in the year 1970 or 2036, and is right
some seconds later. In between, `max_age_days` would delete the whole history. So nothing is deleted by age
for a day after the clock has jumped by more than a day, unless the kernel says that it is synchronized.
"""

import ctypes
import time
from collections.abc import Callable

JUMP_SECONDS = 86_400
"""A larger change of the wall clock is a jump; so is a larger gap since the newest row at the start."""

DISTRUST_SECONDS = 86_400

_TIME_ERROR = 5
_BUFFER_BYTES = 512  # struct timex has 208 bytes on 64-bit Linux


class ClockTrust:
    """Watches the wall clock for jumps.

    Args:
        clock: returns Unix seconds.
        monotonic: returns seconds of a clock that nobody sets, which counts while the machine sleeps.
        is_synchronized: returns whether the wall clock is known to be right; None for what the kernel says.

    Attributes:
        now: returns Unix seconds by the wall clock.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
        is_synchronized: Callable[[], bool] | None = None,
    ) -> None:
        self.now = clock
        self._monotonic = monotonic
        self._is_synchronized = is_synchronized or is_clock_synchronized
        self._offset: float | None = None  # of the wall clock to the other one; None before the first call
        self._distrusted_until = 0.0

    def is_trusted(self, newest: int | None) -> bool:
        """Return whether rows may be deleted because of their age now.

        Args:
            newest: Unix seconds of the newest row; None if there is none.
        """
        now = self._monotonic()
        offset = self.now() - now
        reference = self._offset
        if reference is None and newest is not None:
            # After a start: a collector that was off for weeks looks the same as a clock that is ahead.
            reference = newest - now
        self._offset = offset
        if reference is not None and abs(offset - reference) > JUMP_SECONDS:
            self._distrusted_until = now + DISTRUST_SECONDS
        return now >= self._distrusted_until or self._is_synchronized()


def is_clock_synchronized() -> bool:
    """Return whether the kernel says that the wall clock is synchronized (adjtimex; NTP clients set it)."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        state = int(libc.adjtimex(ctypes.create_string_buffer(_BUFFER_BYTES)))  # modes = 0: only read
    except (OSError, AttributeError):
        return False
    return 0 <= state < _TIME_ERROR
