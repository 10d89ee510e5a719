"""What the background jobs of this package share: when they run, retries, priority, and stopping early."""

import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from collector.errors import CollectorError, DatabaseBusy, Stopped

POLL_SECONDS = 60
"""Seconds between two checks whether a job is due."""

RETRY_SECONDS = 3600
"""Seconds after a failure until the job is tried again."""

CLOCK_TOLERANCE_SECONDS = 43_200
"""How far in the future the time of the last run may be and still count.

Example: a backup was made at 02:00, and at 02:10 the clock is set back by one hour. The last backup is then
50 minutes in the future; it still counts, so that this night brings no second one. A time further in the
future comes from a wrong clock, for example of a machine that started in the year 2036: if it counted, there
would be no backup until that year.
"""

_LOWEST_PRIORITY = 19

Result = TypeVar("Result")


class DueJob(ABC):
    """A job that is called often, works when it is due, and waits for an hour after a failure.

    Args:
        stop: ends the work early.
    """

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._failure: CollectorError | None = None
        self._retry_at = 0.0

    def run(self) -> None:
        """Do the work if it is due.

        Until the retry, every call raises the failure again, so that the job's state remains failed: a call
        without an error would report it as recovered although no backup was made.

        Raises:
            DatabaseBusy: another program holds a lock; the next call tries again.
            CollectorError: the work failed, now or at the last attempt, and will be tried again later.
        """
        if self._failure and time.monotonic() < self._retry_at:
            raise self._failure.with_traceback(None)  # otherwise the traceback grows with each raise
        self._failure = None
        try:
            self._run_if_due()
        except DatabaseBusy:
            raise
        except CollectorError as error:
            if self._stop.is_set():
                return  # it was interrupted, for example "interrupted" from SQLite: not a failure
            self._failure, self._retry_at = error, time.monotonic() + RETRY_SECONDS
            raise

    @abstractmethod
    def _run_if_due(self) -> None:
        """Check whether the work is due, and do it."""


def run_at_lowest_priority(action: Callable[[], Result]) -> Result:
    """Return the result of a long computation that leaves the processors to inference.

    It runs in a new thread, because a thread without privileges cannot raise its priority again.
    """

    def lower_priority() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)

    with ThreadPoolExecutor(1, initializer=lower_priority) as pool:
        return pool.submit(action).result()


def raise_if_stopped(stop: threading.Event) -> None:
    """Raise `Stopped` if the collector is stopping."""
    if stop.is_set():
        raise Stopped("the collector is stopping")
