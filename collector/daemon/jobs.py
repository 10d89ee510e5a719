"""The maintenance jobs: what runs from time to time beside the sampling, one job after another."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from collector.backups.background import POLL_SECONDS
from collector.backups.directory import BackupDirectory
from collector.backups.nightly import NightlyBackup
from collector.backups.restoration import prepare_restore
from collector.backups.trial import TrialRestore
from collector.catalog import OWN_TABLES
from collector.daemon.sampler import SNAPSHOT_TIMEOUT_SECONDS
from collector.database import Database
from collector.history.format_watch import FormatWatch
from collector.history.model_events import LoggedModelEvents
from collector.history.request_runs import RequestRuns
from collector.history.retention import Prune
from collector.logs.past.backfill import RequestBackfill
from collector.logs.past.duplicates import RequestDuplicates
from collector.models.scan import ModelScan
from collector.settings import Settings
from collector.sources.upgrade import RowUpgrade
from collector.views import VIEWS

AFTER_TICK_SECONDS = SNAPSHOT_TIMEOUT_SECONDS + 0.25
"""Offset of a job that starts when the tick of the same second is complete."""

_UPGRADE_SECONDS = 60  # until the next attempt, after one that failed because of a lock or a full disk


_REQUEST_RUNS_SECONDS = 10
_MODEL_EVENTS_SECONDS = 10
_LOG_FORMAT_SECONDS = 60
_BACKFILL_SECONDS = 2

SIZE_SECONDS = 1
"""How often the size of the file is compared with its limit."""


@dataclass(frozen=True, slots=True)
class Job:
    """One action that runs at a fixed interval.

    Args:
        name: its name in `collector_health`.
        action: the action; an exception is logged once and does not end the job.
        interval_seconds: time between two starts; a run in progress is not started a second time.
        offset_seconds: how long after the full second it starts.
        thread: `sampling`, `writer` or `maintenance`; jobs of one thread wait for each other.
        is_vital: the daemon's start waits for the first run, and systemd's watchdog for every one.
    """

    name: str
    action: Callable[[], object]
    interval_seconds: float
    offset_seconds: float
    thread: str
    is_vital: bool = False


def maintenance_jobs(
    settings: Settings, database: Database, upgrade: RowUpgrade, prune: Prune, stop: threading.Event
) -> list[Job]:
    """Return the maintenance jobs that the settings ask for, in the order of their first run.

    Args:
        settings: their intervals; 0, or an empty schedule, means never.
        database: the database that they work on.
        upgrade: completes the rows that version 0.1.0 wrote.
        prune: deletes what is beyond the limits.
        stop: ends each of them early.
    """
    scan = ModelScan(database, settings.models_directories)
    directory = BackupDirectory(settings.backup_directory, database.path)
    nightly = NightlyBackup(database, directory, settings.backup, stop)
    restore = partial(prepare_restore, tables=OWN_TABLES, views=VIEWS)
    days = settings.backup.self_test_days
    trial = TrialRestore(database, directory, days, restore, stop)
    runs, formats = RequestRuns(database), FormatWatch(database, time.time())
    model_events = LoggedModelEvents(database, _settle_seconds(settings))
    backfill, duplicates = RequestBackfill(database), RequestDuplicates(database)
    has_logs = bool(settings.logs.files or settings.logs.journal_units)
    intervals = (
        ("scan", partial(scan.run, stop=stop), settings.models.rescan_interval),
        ("backup", nightly.run, POLL_SECONDS if settings.backup.schedule else 0),
        ("backup_test", trial.run, POLL_SECONDS if days else 0),
        ("request_runs", lambda: runs.run(time.time()), _REQUEST_RUNS_SECONDS if has_logs else 0),
        ("request_backfill", backfill.run, _BACKFILL_SECONDS if backfill.is_due() else 0),
        ("request_duplicates", duplicates.run, _REQUEST_RUNS_SECONDS if has_logs else 0),
        ("model_events", lambda: model_events.run(time.time()), _MODEL_EVENTS_SECONDS if has_logs else 0),
        ("log_format", lambda: formats.run(time.time()), _LOG_FORMAT_SECONDS if has_logs else 0),
        ("prune", prune.run, settings.retention.interval),
        ("prune_size", prune.run_if_too_large, SIZE_SECONDS if settings.retention.max_database_mb else 0),
        ("upgrade", upgrade.run, _UPGRADE_SECONDS if upgrade.is_due() else 0),
    )
    return [
        Job(name, action, interval, AFTER_TICK_SECONDS, "maintenance")
        for name, action, interval in intervals
        if interval
    ]


def _settle_seconds(settings: Settings) -> float:
    """Return after how many seconds the samples that saw an event are committed."""
    return 2 * settings.sampling.interval + settings.database.flush_interval + 10
