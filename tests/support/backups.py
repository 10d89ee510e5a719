"""Backups made at a given time, and what is in them."""

import sqlite3
import threading
from contextlib import closing
from datetime import datetime
from pathlib import Path

from collector.backups.creation import back_up
from collector.backups.directory import BackupDirectory
from collector.database import Database

TONIGHT = datetime.fromisoformat("2026-11-03T02:00:00")
NIGHT = TONIGHT.timestamp()
HOUR, DAY = 3600, 86_400


def make_backup(database: Database, directory: BackupDirectory, at: float = NIGHT, keep: int = 7) -> Path:
    return Path(back_up(database, directory, keep, threading.Event(), lambda: at).file)


def metrics_in(path: Path) -> list[tuple[int, float]]:
    """Return the timestamps and CPU usages in a database that must be undamaged."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as reader:
        assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return reader.execute("SELECT timestamp, cpu_usage FROM metrics ORDER BY id").fetchall()


def names(directory: BackupDirectory) -> list[str]:
    """Return the names of all files in the directory, incomplete ones included."""
    return sorted(path.name for path in directory.path.iterdir())
