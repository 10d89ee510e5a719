"""The running collector: start, run, stop. The only importer of APScheduler."""

import gc
import math
import signal
import sys
import threading
import time
from datetime import UTC, datetime
from functools import partial

import structlog
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.interval import IntervalTrigger

import collector
from collector import events, service
from collector.config import Settings, read_api_key
from collector.database import Database
from collector.database.buffer import Buffer
from collector.database.documented import LOGS
from collector.database.writer import Writer
from collector.health import COLLECTOR_HEALTH, Health, State, observe
from collector.jobs.base import Job
from collector.jobs.scan_models import ModelScan
from collector.log_poller import LogPoller
from collector.own_tables import OWN_TABLES
from collector.sampler import SNAPSHOT_PATIENCE_SECONDS, Sampler
from collector.sources.registry import build_sources
from collector.table import Row

ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # the last when its terminal is closed
CLOCK_STEP_SECONDS = 1.0
_FLUSH_OFFSET_SECONDS = SNAPSHOT_PATIENCE_SECONDS + 0.25  # the tick of the same second is complete by then
_LAST_FLUSH_SECONDS = 1.0
_LAST_POLL_SECONDS = 0.5
_LAST_JOB_SECONDS = 0.5


class Daemon:
    """One collector over its life.

    Args:
        settings: checked settings.

    Raises:
        SettingsError: the API key cannot be read.
        DatabaseError: the database cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._buffer = Buffer()
        events.configure(settings.logging.level, settings.logging.format, self._store_event)
        self._log = structlog.get_logger()
        api_key = read_api_key(settings.llama_server)  # every setting is checked before anything is touched
        self._database = Database(settings.database_path, OWN_TABLES)
        sources = build_sources(settings, api_key, self._database.query)
        self._sampler = Sampler(sources, self._buffer, settings.sampling.interval)
        self._writer = Writer(self._database, self._buffer, self._health_rows)
        self._own_health = Health("collector")
        self._stopping = threading.Event()
        self._maintenance = threading.Lock()
        self._jobs = self._build_jobs()
        self._logs = LogPoller(settings.logs, self._database, self._buffer, self._flush_now)
        self._job_health = {job.name: Health(job.name) for job in self._jobs}
        self._scheduler = _scheduler()

    def _build_jobs(self) -> list[Job]:
        """All jobs, in the order of their first run."""
        interval, flush_interval = self._settings.sampling.interval, self._settings.database.flush_interval
        jobs = [
            Job("sample", self._sampler.tick, interval, 0, "sampling", is_vital=True),
            Job("flush", self._writer.flush, flush_interval, _FLUSH_OFFSET_SECONDS, "writer", is_vital=True),
        ]
        if rescan_interval := self._settings.models.rescan_interval:
            scan = ModelScan(self._database, self._settings.models_directories)
            action = partial(scan.run, stop=self._stopping)
            jobs.append(Job("scan", action, rescan_interval, _FLUSH_OFFSET_SECONDS, "maintenance"))
        return jobs

    def start(self) -> None:
        """Take the first sample, commit it, and set the timers."""
        self._own_health.report(
            State("running", f"version {collector.__version__}, database {self._settings.database_path}")
        )
        if self._database.changes:
            self._log.info(f"database: {', '.join(self._database.changes)}")
        started = time.time()
        for job in self._jobs:
            if job.is_vital:
                self._run(job)
        self._schedule(started, first=True)
        self._scheduler.start()
        self._logs.start()
        tune_garbage_collection()
        service.notify(READY=1)

    def run(self) -> None:
        """Wait for a signal to end; meanwhile watch the clock and the jobs."""
        pause = min(2.0, self._settings.sampling.interval)
        offset = _wall_clock_offset()
        while signal.sigtimedwait(ENDING_SIGNALS, pause) is None:
            if abs(_wall_clock_offset() - offset) > CLOCK_STEP_SECONDS:
                offset = _wall_clock_offset()
                self._schedule(time.time())  # interval triggers would wait for the old time to come back
                self._log.warning("the clock was set, or the machine slept: the timers start anew")
            if self._alive():
                service.notify(WATCHDOG=1)

    def stop(self) -> None:
        """End the timers, commit what waits, close the database."""
        service.notify(STOPPING=1)
        self._stopping.set()
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)
        self._sampler.close()
        self._logs.close(_LAST_POLL_SECONDS)
        self._maintenance.acquire(timeout=_LAST_JOB_SECONDS)
        self._own_health.report(State("stopped"))
        self._last_flush()
        self._database.close()

    def _flush_now(self) -> bool:
        return observe(self._job_health["flush"], self._writer.flush) is not None

    def _last_flush(self) -> None:
        deadline = time.monotonic() + _LAST_FLUSH_SECONDS
        while not self._flush_now() and time.monotonic() < deadline:
            time.sleep(0.05)  # another program holds a lock: it may let go in time
        if waiting := self._buffer.waiting:
            self._log.error("the last rows could not be written and are lost", rows=waiting)

    def _run(self, job: Job) -> None:
        health = self._job_health[job.name]
        if job.thread != "maintenance":
            observe(health, job.action)
            return
        with self._maintenance:  # the end waits a little for it
            if not self._stopping.is_set():
                observe(health, job.action)

    def _schedule(self, last_run: float, *, first: bool = False) -> None:
        for job in self._jobs:
            at_once = first and not job.is_vital
            next_run = datetime.now(UTC) if at_once else _next_run(job, last_run)
            self._scheduler.add_job(
                self._run,
                IntervalTrigger(seconds=job.interval_seconds, start_date=next_run, timezone=UTC),
                (job,),
                id=job.name,
                executor=job.thread,
                next_run_time=next_run,  # also where it has just passed
                replace_existing=True,
            )

    def _alive(self) -> bool:
        now = time.time()
        return all(
            now - (self._job_health[job.name].last_run or now) < max(30, 3 * job.interval_seconds)
            for job in self._jobs
            if job.is_vital
        )

    def _health_rows(self) -> tuple[str, list[Row]]:
        everything = (self._own_health, *self._sampler.health, *self._logs.health, *self._job_health.values())
        return COLLECTOR_HEALTH.replace_statement, [health.row() for health in everything]

    def _store_event(self, level: str, text: str) -> None:
        self._buffer.add_lines(LOGS, [(level, text, "collector", int(time.time()))])


def run_until_signalled(settings: Settings) -> None:
    """A collector from start to stop, in this thread.

    Raises:
        SettingsError: the API key cannot be read.
        DatabaseError: the database cannot be used.
    """
    # Before any thread starts: threads inherit the mask, so that only this one takes the signals.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    daemon = Daemon(settings)
    try:
        daemon.start()
        daemon.run()
    finally:
        daemon.stop()
        sys.stderr.flush()


def tune_garbage_collection() -> None:
    """What is here after the start stays, and log lines come by the thousand and hold no cycles."""
    gc.freeze()
    gc.set_threshold(10_000)


def _scheduler() -> BackgroundScheduler:
    return BackgroundScheduler(
        timezone=UTC,
        executors={
            # In the scheduler's own thread: a tick is short and bounded, and a thread less is cheaper.
            "sampling": DebugExecutor(),
            "writer": ThreadPoolExecutor(1),
            "maintenance": ThreadPoolExecutor(1),
        },
        job_defaults={"max_instances": 1, "coalesce": True, "misfire_grace_time": None},
    )


def _next_run(job: Job, last_run: float) -> datetime:
    """On the full second, so that every sample has a second of its own."""
    return datetime.fromtimestamp(math.floor(last_run + job.interval_seconds) + job.offset_seconds, UTC)


def _wall_clock_offset() -> float:
    return time.time() - time.monotonic()
