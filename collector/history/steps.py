"""Short transactions with pauses between them, in which other threads use the connection."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from collector.errors import DatabaseBusy, Stopped

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
        deadline = time.monotonic() + BUSY_TIMEOUT_SECONDS
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                return action()
            except DatabaseBusy:
                if time.monotonic() > deadline:
                    raise
            finally:
                self._stop.wait(max(MIN_PAUSE_SECONDS, time.monotonic() - started))
        raise Stopped("the collector is stopping")
