"""One daemon: start, run, stop.

It connects the parts: the sampler and the log threads fill the buffer, the writer flushes it, the scheduler
runs the jobs, and the main thread receives signals and reports to systemd.

Threads: main (`run`), the scheduler's (ticks), one for flushes, one for maintenance jobs, one per log reader,
and the workers of the sampler. They share the buffer and the database, each of which has its own lock.
"""

import gc
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from functools import partial

import structlog

import collector
from collector import events
from collector.backups.files import move_aside
from collector.catalog import OWN_TABLES, open_database
from collector.daemon import signals, systemd
from collector.daemon.heartbeat import Heartbeat, status_line
from collector.daemon.jobs import AFTER_TICK_SECONDS, Job, maintenance_jobs
from collector.daemon.log_threads import LogThreads
from collector.daemon.run_record import RunRecord
from collector.daemon.sampler import Sampler
from collector.daemon.scheduler import Scheduler
from collector.database import Database
from collector.database.buffer import Batch, Buffer, Retention
from collector.database.documented import LOGS
from collector.database.integrity_check import RETRY_SECONDS, IntegrityCheck
from collector.database.writer import Writer
from collector.errors import DatabaseDamaged, DatabaseError, SettingsError
from collector.health import COLLECTOR_HEALTH, FLUSH_FINGERPRINT, OK, Health, State, observe
from collector.history.retention import Prune
from collector.output import BackgroundOutput
from collector.schema import Write
from collector.settings import Settings, read_api_key
from collector.sources.llama.runs import ServerRuns
from collector.sources.registry import build_sources, build_upgrade

_MAIN_LOOP_SECONDS = 2.0

# How long a stop waits for the last polls of the logs, the maintenance job in progress, and the last flush.
# Together with the last tick, which takes half a second at most, a stop ends within two seconds.
_LAST_POLL_SECONDS = 0.3
_LAST_JOB_SECONDS = 0.3
_LAST_FLUSH_SECONDS = 0.5


class Daemon:
    """The collector with one set of settings and one database file.

    Args:
        settings: checked settings.
        output: where events are printed; None for standard error as it is.
        previous_error: the error that ended the previous daemon, if one did.
        waiting: rows that the previous daemon could not write.

    Raises:
        SettingsError: the API key cannot be read.
        DatabaseError: the database cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        output: BackgroundOutput | None = None,
        previous_error: DatabaseError | None = None,
        waiting: Sequence[Batch] = (),
    ) -> None:
        self._settings = settings
        self._output = output
        self._buffer = Buffer()
        events.configure(settings.logging.level, settings.logging.format, self._store_event, output)
        self._log = structlog.get_logger()
        api_key = read_api_key(settings.llama_server)  # all settings are checked before any file is changed
        self._database = self._open_database(previous_error)
        with ExitStack() as on_error:
            on_error.callback(self._database.close)
            self._run_record = RunRecord(self._database, self._buffer)
            self._buffer.put_back(list(waiting))
            self._has_waiting_rows = bool(waiting)
            runs = ServerRuns(self._database.query)
            sources = build_sources(settings, api_key, self._database, runs)
            self._sampler = Sampler(sources, self._buffer, settings.sampling.interval)
            self._writer = Writer(self._database, self._buffer, self._health_rows, FLUSH_FINGERPRINT)
            self._own_health = Health("collector")
            self._output_health, self._journal_health = Health("output"), Health("journal_mode")
            self._stopping = threading.Event()
            self._maintenance_lock = threading.Lock()
            self._upgrade = build_upgrade(settings, self._database, runs, self._stopping)
            self._upgrade.begin()
            self._integrity_check = IntegrityCheck(
                self._database,
                self._stopping,
                self._run_record.add_integrity,
                is_due=self._run_record.is_check_due,
            )
            self._prune = Prune(self._database, OWN_TABLES, settings.retention, self._stopping)
            self._jobs = self._build_jobs()
            self._job_health = {job.name: Health(job.name) for job in self._jobs}
            self._logs = LogThreads(
                settings, self._database, self._buffer, self._flush_now, self._prune.is_too_large
            )
            vital = [(self._job_health[job.name], job.interval_seconds) for job in self._jobs if job.is_vital]
            self._heartbeat = Heartbeat(vital, self._status_line)
            self._scheduler = Scheduler(self._jobs, self._run)
            on_error.pop_all()

    def _open_database(self, previous_error: DatabaseError | None) -> Database:
        """Open the database; move a damaged one aside and create an empty one, if the settings allow it."""
        path = self._settings.database_path
        try:
            if isinstance(previous_error, DatabaseDamaged):
                raise previous_error
            return open_database(path)
        except DatabaseDamaged as error:
            if self._settings.database.on_damage == "stop":
                raise
            aside = move_aside(path)
            database = open_database(path)
            self._log.error(f"{error} It was set aside as {aside}, and an empty database was created")
            return database

    def _build_jobs(self) -> list[Job]:
        """Return all jobs, in the order of their first run."""
        interval, flush_interval = self._settings.sampling.interval, self._settings.database.flush_interval
        return [
            Job("sample", self._sampler.tick, interval, 0, "sampling", is_vital=True),
            Job("flush", self._writer.flush, flush_interval, AFTER_TICK_SECONDS, "writer", is_vital=True),
            Job("damage_check", self._integrity_check.run, RETRY_SECONDS, AFTER_TICK_SECONDS, "maintenance"),
            *maintenance_jobs(self._settings, self._database, self._upgrade, self._prune, self._stopping),
        ]

    def start(self) -> None:
        """Sample and flush once, then start timers and threads."""
        self._own_health.set_state(
            State("running", f"version {collector.__version__}, database {self._settings.database_path}")
        )
        if self._database.changes:
            self._log.info(f"database: {', '.join(self._database.changes)}")
        if self._has_waiting_rows:  # the first sample is compared with the newest stored rows: energy, models
            self._flush_now()
        started = time.time()
        for job in self._jobs:
            if job.is_vital:
                self._run(job)
        self._scheduler.start(started)
        self._logs.start()
        tune_garbage_collection()
        self._heartbeat.report()

    def run(self, reread: Callable[[], Settings]) -> Settings | None:
        """Wait for signals; meanwhile check the database and the clock, and report to systemd.

        Args:
            reread: reads the settings again; raises SettingsError.

        Returns:
            the settings to continue with, after a reload; None after a signal that asks to stop.

        Raises:
            DatabaseDamaged: the database is damaged.
            DatabaseReplaced: the collector is to switch to what is at the database's path now.
        """
        pause = min(_MAIN_LOOP_SECONDS, self._settings.sampling.interval)
        while True:
            received = signals.wait_for_signal(pause)
            if received and signals.is_stop_signal(received):
                systemd.notify(STOPPING=1)
                return None
            if received and (settings := self._reload(reread)):
                return settings
            self._check_database()
            self._set_state(self._output_health, self._output.problem if self._output else None)
            self._set_state(self._journal_health, self._writer.journal_problem)
            self._scheduler.follow_clock()
            self._heartbeat.report()

    def _check_database(self) -> None:
        """Raise an error if this daemon must stop using its database: it is damaged, or was replaced.

        `file_watch.py` describes the steps after a replacement. The flush here is the last attempt: if it
        succeeds, the file has come back.
        """
        if self._integrity_check.damage:
            raise self._integrity_check.damage
        if self._writer.replacement and not self._flush_now(force=True):
            replacement = self._writer.replacement  # None after another error, for example a lock
            if replacement and replacement.is_ready():
                raise replacement.error

    def _set_state(self, health: Health, problem: str | None) -> None:
        """Set the state of something that has no runs: `ok`, or `failed` because of a problem."""
        health.set_state(State("failed", problem, level="error", success=False) if problem else OK)

    def _reload(self, reread: Callable[[], Settings]) -> Settings | None:
        """Return the new settings; None, and a logged reason, if the old ones stay in use."""
        systemd.notify(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)
        try:
            settings = reread()
            read_api_key(settings.llama_server)
            if self._flush_now(force=True):
                return settings
            faults = ["the database cannot be written at the moment: reload again later"]
        except SettingsError as error:
            faults = error.faults
        for fault in faults:
            self._log.error(f"the old settings stay in use: {fault}")
        systemd.notify(READY=1)
        return None

    def stop(self, *, keep_rows: bool = False) -> None:
        """Stop timers and threads, flush the buffer, close the database.

        Args:
            keep_rows: do not flush if the database was replaced: `hand_over` then returns the rows.
        """
        with closing(self._database):
            self._stopping.set()
            self._scheduler.stop()
            self._sampler.close()
            self._logs.close(_LAST_POLL_SECONDS)
            if self._maintenance_lock.acquire(timeout=_LAST_JOB_SECONDS):  # the job in progress has ended
                self._maintenance_lock.release()  # a job that waits for it does nothing: `_stopping` is set
            else:
                self._database.interrupt()  # a statement of it that takes seconds would delay the last flush
            self._own_health.set_state(State("stopped"))
            if not (keep_rows and self._writer.replacement):
                self._run_record.add_stop()
                self._flush_last_rows()

    def _flush_last_rows(self) -> None:
        """Flush the buffer; log and record what could not be written."""
        deadline = time.monotonic() + _LAST_FLUSH_SECONDS
        while not self._flush_now() and time.monotonic() < deadline:
            time.sleep(0.05)  # another program holds a lock: it may release it in time
        if waiting := self._buffer.waiting:
            self._log.error("the last rows could not be written and are lost", rows=waiting)
            self._run_record.record_lost_rows()

    def hand_over(self) -> list[Batch]:
        """Remove and return the rows that the next daemon is to write; it reads log lines again itself."""
        return self._writer.hand_over()

    def _flush_now(self, *, force: bool = False) -> bool:
        """Flush the buffer, outside the timer of the job `flush`, and return whether that succeeded."""
        return observe(self._job_health["flush"], partial(self._writer.flush, force=force)) is not None

    def _run(self, job: Job) -> None:
        """Run a job once and record the run; the scheduler calls this."""
        health = self._job_health[job.name]
        if job.thread != "maintenance":
            observe(health, job.action)
            return
        with self._maintenance_lock:  # `stop` waits for it for a short time
            if not self._stopping.is_set():
                observe(health, job.action)

    def _health_rows(self) -> Write:
        return COLLECTOR_HEALTH.replace(*(health.row() for health in (self._own_health, *self._parts())))

    def _parts(self) -> list[Health]:
        """Return the health of each source, log reader and job."""
        jobs = self._job_health.values()
        own = (self._output_health, self._journal_health)
        return [*self._sampler.health, *self._logs.health, *jobs, *own]

    def _status_line(self) -> str:
        active_models = self._sampler.newest.get("active_models")
        return status_line(
            self._settings.sampling.interval, self._parts(), active_models, self._settings.database_path
        )

    def _store_event(self, level: str, text: str) -> None:
        self._buffer.add([LOGS.insert((level, text, "collector", int(time.time())))], Retention.KEPT)


def tune_garbage_collection() -> None:
    """Exclude the objects that exist after the start from garbage collection, and collect less often.

    They stay until the daemon stops. Log lines come by the thousand and are in no cycles, so frequent
    collections would find nothing.
    """
    gc.unfreeze()
    gc.collect()  # after a reload: the objects of the previous daemon
    gc.freeze()
    gc.set_threshold(10_000)
