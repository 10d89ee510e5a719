"""Run computation at the lowest CPU priority."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_LOWEST_PRIORITY = 19

Result = TypeVar("Result")


def run_at_lowest_priority(action: Callable[[], Result]) -> Result:
    """Do what computes for long, so that inference has the processors first.

    In a thread of its own: who has lowered his priority may not raise it again.
    """
    with ThreadPoolExecutor(1, initializer=_step_back) as pool:
        return pool.submit(action).result()


def _step_back() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
