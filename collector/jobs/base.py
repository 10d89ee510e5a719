"""What a job is: an action on a timer."""

from collections.abc import Callable
from dataclasses import dataclass

from collector.errors import CollectorError


class Stopped(CollectorError):  # noqa: N818 - no error
    """The collector ends: what is not done waits for its next start."""


@dataclass(frozen=True, slots=True)
class Job:
    """One action that runs at a fixed interval.

    Args:
        name: stands in `collector_health`.
        action: what it does; an error that it raises is told once and does not end the job.
        interval_seconds: between two starts; a run that is still under way is not started again.
        offset_seconds: how long after the full second it starts.
        thread: jobs of one thread wait for each other: `sampling`, `writer` or `maintenance`.
        is_vital: the start waits for its first run, and the watchdog for every one.
    """

    name: str
    action: Callable[[], object]
    interval_seconds: float
    offset_seconds: float
    thread: str
    is_vital: bool = False
