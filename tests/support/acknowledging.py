"""Run a collector's writer that prints what it has committed, and which backups it has made.

Usage: python -m tests.support.acknowledging DATABASE SYNCHRONOUS

SYNCHRONOUS is a value of SQLite's pragma, or "" for that of the collector. The process runs until it is killed.
Each line of its output is the number of a committed round, or the path of a backup.
"""

import sys
import threading
import time
from itertools import count
from pathlib import Path

from collector.backups.creation import back_up
from collector.backups.directory import BackupDirectory
from collector.catalog import OWN_TABLES
from collector.database import Database
from collector.database.buffer import Buffer, Retention
from collector.database.documented import LOGS, METRICS
from collector.database.writer import Writer
from collector.history.retention import Prune
from collector.schema import Row
from collector.settings import RetentionSettings

BACKUP_SECONDS, KEPT_BACKUPS = 2, 3  # at least one second, by which backups are named
KEPT_LINES, LINES_PER_ROUND = 1000, 30


def main() -> None:
    path, synchronous = Path(sys.argv[1]), sys.argv[2]
    stop, buffer = threading.Event(), Buffer()
    with Database(path, OWN_TABLES) as database:
        if synchronous:
            database.run_script(f"PRAGMA synchronous = {synchronous}")
        writer = Writer(database, buffer)
        retention = RetentionSettings(metrics_max_rows=0, logs_max_rows=KEPT_LINES)
        prune = Prune(database, OWN_TABLES, retention, stop)
        directory = BackupDirectory(path.parent / "backup", path)
        backup_at = time.monotonic()
        for number in count(1):
            lines: list[Row] = [
                ("info", f"line {line} of round {number}", "test", number) for line in range(LINES_PER_ROUND)
            ]
            buffer.add([LOGS.insert(*lines)], Retention.KEPT)
            buffer.add([METRICS.insert(METRICS.row({"timestamp": number}))], Retention.DROPPABLE)
            writer.flush()
            print(number, flush=True)
            if time.monotonic() >= backup_at:
                backup_at = time.monotonic() + BACKUP_SECONDS
                prune.run()
                print(back_up(database, directory, KEPT_BACKUPS, stop).file, flush=True)


if __name__ == "__main__":
    main()
