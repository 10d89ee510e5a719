"""The timers of the jobs: the part of the daemon that uses APScheduler."""

import math
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import structlog
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.interval import IntervalTrigger

from collector.daemon.jobs import Job

CLOCK_STEP_SECONDS = 1.0
"""A larger change of the wall clock relative to the monotonic one restarts the timers."""


class Scheduler:
    """Timers that run each job at its interval, in the thread that the job names.

    APScheduler's defaults do not fit: a run that is late by a second would be dropped
    (`misfire_grace_time`), and runs that were missed during a sleep would all be made up for (`coalesce`).

    Args:
        jobs: the jobs.
        run: runs one of them.
    """

    def __init__(self, jobs: Sequence[Job], run: Callable[[Job], None]) -> None:
        self._jobs = jobs
        self._run = run
        self._clock_offset = _clock_offset()
        self._scheduler = BackgroundScheduler(
            timezone=UTC,
            executors={
                # In the scheduler's own thread: a tick is short and bounded, and one thread less costs less.
                "sampling": DebugExecutor(),
                "writer": ThreadPoolExecutor(1),
                "maintenance": ThreadPoolExecutor(1),
            },
            job_defaults={"max_instances": 1, "coalesce": True, "misfire_grace_time": None},
        )

    def start(self, last_run: float) -> None:
        """Start the timers; jobs that are not vital run at once for the first time.

        Args:
            last_run: Unix seconds of the first run of the vital jobs.
        """
        now = datetime.now(UTC)
        for job in self._jobs:
            self._set_timer(job, _next_run(job, last_run) if job.is_vital else now)
        self._clock_offset = _clock_offset()
        self._scheduler.start()

    def follow_clock(self) -> None:
        """Restart the timers if the wall clock was set or the machine slept; to be called every few seconds.

        APScheduler computes with the wall clock: if that is set back by an hour, a job with an interval of
        five seconds would run again after an hour and five seconds.
        """
        offset = _clock_offset()
        if abs(offset - self._clock_offset) <= CLOCK_STEP_SECONDS:
            return
        self._clock_offset = offset
        now = time.time()
        for job in self._jobs:
            self._set_timer(job, _next_run(job, now))
        structlog.get_logger().warning("the clock was set, or the machine slept: the timers were restarted")

    def stop(self) -> None:
        """Stop the timers, without waiting for jobs that are running."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)

    def _set_timer(self, job: Job, next_run: datetime) -> None:
        self._scheduler.add_job(
            self._run,
            IntervalTrigger(seconds=job.interval_seconds, start_date=next_run, timezone=UTC),
            (job,),
            id=job.name,
            executor=job.thread,
            next_run_time=next_run,  # even if it has just passed
            replace_existing=True,
        )


def _next_run(job: Job, last_run: float) -> datetime:
    """Return the full second after the interval, plus the offset: each sample has a second of its own."""
    return datetime.fromtimestamp(math.floor(last_run + job.interval_seconds) + job.offset_seconds, UTC)


def _clock_offset() -> float:
    return time.time() - time.monotonic()
