"""What is done from time to time beside the sampling, one after another: the jobs as a list."""

import threading
from functools import partial

from collector.config import Settings
from collector.database import Database
from collector.database.backup import BackupDirectory, prepare
from collector.jobs.backup import LOOK_SECONDS, BackupTest, NightlyBackup
from collector.jobs.base import Job
from collector.jobs.prune import Prune
from collector.jobs.scan_models import ModelScan
from collector.own_tables import OWN_TABLES
from collector.views import VIEWS

_OFFSET_SECONDS = 0.75  # the samples of the same second are taken by then


def maintenance_jobs(settings: Settings, database: Database, stop: threading.Event) -> list[Job]:
    """The jobs that the settings want, in the order of their first run.

    Args:
        settings: how often each runs; 0, or no schedule, is never.
        database: what they work on.
        stop: ends each of them early.
    """
    scan = ModelScan(database, settings.models_directories)
    place = BackupDirectory(settings.backup_directory, database.path)
    nightly = NightlyBackup(database, place, settings.backup, stop)
    restore = partial(prepare, tables=OWN_TABLES, views=VIEWS)
    days = settings.backup.self_test_days
    test = BackupTest(database, place, days, restore, stop)
    prune = Prune(database, OWN_TABLES, settings.retention, stop)
    wanted = (
        ("scan", partial(scan.run, stop=stop), settings.models.rescan_interval),
        ("backup", nightly.run, LOOK_SECONDS if settings.backup.schedule else 0),
        ("backup_test", test.run, LOOK_SECONDS if days else 0),
        ("prune", prune.run, settings.retention.interval),
    )
    return [
        Job(name, action, interval, _OFFSET_SECONDS, "maintenance")
        for name, action, interval in wanted
        if interval
    ]
