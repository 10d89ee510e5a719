"""Wait for the locks of other programs."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from collector.errors import DatabaseBusy, Stopped

Result = TypeVar("Result")


def run_when_unlocked(
    action: Callable[[], Result], seconds: float, stop: threading.Event | None = None
) -> Result:
    """Return the result of an action on the database, retried while another program holds a lock.

    A program that commits without a pause holds it nearly all the time: each attempt may miss the moments in
    between, all of them hardly ever do.

    Args:
        action: one attempt; SQLite waits in it for a fraction of a second.
        seconds: for how long it is tried again.
        stop: ends it before the next attempt.

    Raises:
        DatabaseBusy: the lock was held for longer.
        Stopped: the collector is stopping.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return action()
        except DatabaseBusy:
            if stop is not None and stop.is_set():
                raise Stopped("the collector is stopping") from None
            if time.monotonic() > deadline:
                raise
