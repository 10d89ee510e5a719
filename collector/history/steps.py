"""Short transactions with pauses between them, in which other threads use the connection."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from collector.database.locks.waiting import run_when_unlocked
from collector.errors import Stopped

MIN_PAUSE_SECONDS = 0.01

BUSY_TIMEOUT_SECONDS = 10
"""How long a step waits for another program's lock: longer than a reader should hold one."""

Result = TypeVar("Result")


class ShortSteps:
    """Runs short transactions, and after each of them pauses for as long as it took.

    Args:
        stop: ends the work before the next step.
    """

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop

    def run(self, action: Callable[[], Result]) -> Result:
        """Run one transaction and return its result, trying again while another program holds a lock.

        Raises:
            Stopped: the collector is stopping.
            DatabaseBusy: another program holds a lock for longer than `BUSY_TIMEOUT_SECONDS`.
        """

        def attempt() -> Result:
            if self._stop.is_set():
                raise Stopped("the collector is stopping")
            started = time.monotonic()
            try:
                return action()
            finally:
                self._stop.wait(max(MIN_PAUSE_SECONDS, time.monotonic() - started))

        return run_when_unlocked(attempt, BUSY_TIMEOUT_SECONDS, self._stop)
