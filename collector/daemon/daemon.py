"""The running collector: start, run, stop. The only importer of APScheduler."""

import gc
import math
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial

import structlog
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.interval import IntervalTrigger

import collector
from collector import events
from collector.backups.files import move_aside
from collector.catalog import open_database
from collector.daemon import signals, systemd
from collector.daemon.heartbeat import Heartbeat, status_line
from collector.daemon.jobs import Job, maintenance_jobs
from collector.daemon.log_threads import LogPoller
from collector.daemon.sampler import SNAPSHOT_TIMEOUT_SECONDS, Sampler
from collector.database import Database
from collector.database.buffer import Batch, Buffer, Retention
from collector.database.documented import LOGS
from collector.database.integrity_check import LOOK_SECONDS as CHECK_SECONDS
from collector.database.integrity_check import DamageCheck
from collector.database.writer import Writer
from collector.errors import DatabaseDamaged, DatabaseError, SettingsError
from collector.health import COLLECTOR_HEALTH, FLUSH_FINGERPRINT, Health, State, observe
from collector.schema import Row
from collector.settings import Settings, read_api_key
from collector.sources.llama.runs import ServerRuns
from collector.sources.registry import build_sources

CLOCK_STEP_SECONDS = 1.0
_FLUSH_OFFSET_SECONDS = SNAPSHOT_TIMEOUT_SECONDS + 0.25  # the tick of the same second is complete by then
_LAST_FLUSH_SECONDS = 1.0
_LAST_POLL_SECONDS = 0.5
_LAST_JOB_SECONDS = 0.5


class Daemon:
    """One collector over its life.

    Args:
        settings: checked settings.
        lost: why the collector before this one could not go on with the database.
        waiting: what that one has left to be written.

    Raises:
        SettingsError: the API key cannot be read.
        DatabaseError: the database cannot be used.
    """

    def __init__(
        self, settings: Settings, lost: DatabaseError | None = None, waiting: Sequence[Batch] = ()
    ) -> None:
        self._settings = settings
        self._buffer = Buffer()
        events.configure(settings.logging.level, settings.logging.format, self._store_event)
        self._log = structlog.get_logger()
        api_key = read_api_key(settings.llama_server)  # every setting is checked before anything is touched
        self._database = self._open_database(lost)
        self._buffer.put_back(list(waiting))
        runs = ServerRuns(self._database.query)
        sources = build_sources(settings, api_key, self._database, runs)
        self._sampler = Sampler(sources, self._buffer, settings.sampling.interval)
        self._writer = Writer(self._database, self._buffer, self._health_rows, FLUSH_FINGERPRINT)
        self._own_health = Health("collector")
        self._stopping = threading.Event()
        self._maintenance = threading.Lock()
        self._damage_check = DamageCheck(self._database, self._stopping)
        self._jobs = self._build_jobs()
        self._logs = LogPoller(settings.logs, self._database, self._buffer, self._flush_now)
        self._job_health = {job.name: Health(job.name) for job in self._jobs}
        self._heartbeat = Heartbeat(
            [(self._job_health[job.name], job.interval_seconds) for job in self._jobs if job.is_vital],
            self._status_line,
        )
        self._scheduler = _scheduler()

    def _build_jobs(self) -> list[Job]:
        """All jobs, in the order of their first run."""
        interval, flush_interval = self._settings.sampling.interval, self._settings.database.flush_interval
        jobs = [
            Job("sample", self._sampler.tick, interval, 0, "sampling", is_vital=True),
            Job("flush", self._writer.flush, flush_interval, _FLUSH_OFFSET_SECONDS, "writer", is_vital=True),
        ]
        check = self._damage_check.run
        jobs.append(Job("damage_check", check, CHECK_SECONDS, _FLUSH_OFFSET_SECONDS, "maintenance"))
        return jobs + maintenance_jobs(self._settings, self._database, self._stopping)

    def _open_database(self, lost: DatabaseError | None) -> Database:
        path = self._settings.database_path
        try:
            if isinstance(lost, DatabaseDamaged):
                raise lost
            return open_database(path)
        except DatabaseDamaged as error:
            if self._settings.database.on_damage == "stop":
                raise
            kept = move_aside(path)
            database = open_database(path)
            self._log.error(f"{error} It was set aside as {kept}, and an empty one was begun")
            return database

    def start(self) -> None:
        """Take the first sample, commit it, and set the timers."""
        self._own_health.set_state(
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
        self._heartbeat.send()

    def run(self, reread: Callable[[], Settings]) -> Settings | None:
        """Wait for a signal; meanwhile watch the clock and the jobs.

        SIGHUP says to reread the settings where systemd sends it, elsewhere that the terminal was closed.

        Args:
            reread: reads the settings anew; raises SettingsError.

        Returns:
            the settings to go on with; None = none, a signal said to end.

        Raises:
            DatabaseDamaged: something in the database does not fit.
            DatabaseReplaced: what lies at its path now is to be used instead.
        """
        pause = min(2.0, self._settings.sampling.interval)
        offset = _wall_clock_offset()
        while True:
            received = signals.wait(pause)
            if received and signals.is_stop_signal(received):
                systemd.notify(STOPPING=1)
                return None
            if received and (settings := self._reread(reread)):
                return settings
            self._leave_lost_database()
            if abs(_wall_clock_offset() - offset) > CLOCK_STEP_SECONDS:
                offset = _wall_clock_offset()
                self._schedule(time.time())  # interval triggers would wait for the old time to come back
                self._log.warning("the clock was set, or the machine slept: the timers start anew")
            self._heartbeat.send()

    def _leave_lost_database(self) -> None:
        if self._damage_check.damage:
            raise self._damage_check.damage
        if self._writer.lost and not self._flush_now(force=True):
            lost = self._writer.lost
            if lost and lost.is_ready():
                raise lost.error

    def _reread(self, reread: Callable[[], Settings]) -> Settings | None:
        """New settings that can be gone over to; None where the old ones go on, and the log says why."""
        systemd.notify(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)
        try:
            settings = reread()
            read_api_key(settings.llama_server)
            if self._flush_now(force=True):
                return settings
            faults = ["the database cannot be written just now: reload again later"]
        except SettingsError as error:
            faults = error.faults
        for fault in faults:
            self._log.error(f"the old settings go on: {fault}")
        systemd.notify(READY=1)
        return None

    def stop(self, *, is_left: bool = False) -> None:
        """End the timers, commit what waits, close the database.

        Args:
            is_left: where the database is lost, another collector takes what waits: see `hand_over`.
        """
        self._stopping.set()
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)
        self._sampler.close()
        self._logs.close(_LAST_POLL_SECONDS)
        self._maintenance.acquire(timeout=_LAST_JOB_SECONDS)
        # Other words than "stopped" make the next start read the whole database.
        self._own_health.set_state(State("not checked" if self._damage_check.is_due else "stopped"))
        if not (is_left and self._writer.lost):
            self._last_flush()
        self._database.close()

    def hand_over(self) -> list[Batch]:
        """What waits still, for the collector after this one; lines of logs it reads again."""
        return self._writer.hand_over()

    def _flush_now(self, *, force: bool = False) -> bool:
        return observe(self._job_health["flush"], partial(self._writer.flush, force=force)) is not None

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

    def _health_rows(self) -> tuple[str, list[Row]]:
        everything = (self._own_health, *self._parts())
        return COLLECTOR_HEALTH.replace_statement, [health.row() for health in everything]

    def _parts(self) -> list[Health]:
        return [*self._sampler.health, *self._logs.health, *self._job_health.values()]

    def _status_line(self) -> str:
        active_models = self._sampler.newest.get("active_models")
        return status_line(
            self._settings.sampling.interval, self._parts(), active_models, self._settings.database_path
        )

    def _store_event(self, level: str, text: str) -> None:
        row = (level, text, "collector", int(time.time()))
        self._buffer.add([LOGS.insert(row)], Retention.KEPT)


def tune_garbage_collection() -> None:
    """What is here after the start stays, and log lines come by the thousand and hold no cycles."""
    gc.unfreeze()
    gc.collect()  # the collector before this one, after a change of settings
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
