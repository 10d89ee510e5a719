"""Do what a collector does in a minute, step by step, so that a test can make each of its system calls fail.

Usage: python -m tests.support.scripted_minute DATABASE LOG

There are rounds of one sample and some log lines, each committed and then printed; then a prune and a backup. A
second start continues after the last round in the database.
"""

import sys
import threading
from collections.abc import Callable
from pathlib import Path

from collector.backups.creation import back_up
from collector.backups.directory import BackupDirectory
from collector.catalog import OWN_TABLES
from collector.database import Database
from collector.database.buffer import Buffer, Retention
from collector.database.documented import METRICS
from collector.database.writer import Writer
from collector.errors import CollectorError
from collector.history.retention import Prune
from collector.logs.files import LogFileReader
from collector.logs.reader import LogSink, stored_positions
from collector.settings import RetentionSettings

ROUNDS, LINES, OLD_ROWS = 4, 40, 200
KEPT_LOG_ROWS = LINES + 20
ATTEMPTS = 3


def main() -> None:
    path, log = Path(sys.argv[1]), sys.argv[2]
    stop = threading.Event()
    with Database(path, OWN_TABLES) as database:
        collect(database, log)
        settings = RetentionSettings(metrics_max_rows=0, logs_max_rows=KEPT_LOG_ROWS)
        retry(Prune(database, OWN_TABLES, settings, stop).run)
        directory = BackupDirectory(path.parent / "backup", path)
        retry(lambda: back_up(database, directory, 1, stop))


def collect(database: Database, log: str) -> None:
    buffer = Buffer(line_capacity=LINES // ROUNDS + 1)  # so that the lines are read in several rounds
    writer = Writer(database, buffer)
    reader = LogFileReader([log], LogSink(buffer), stored_positions(database))
    (newest,) = database.query("SELECT coalesce(max(timestamp), -1) AS round FROM metrics")
    for number in range(newest["round"] + 1, ROUNDS + 1):
        buffer.add([METRICS.insert(METRICS.row({"timestamp": number}))], Retention.DROPPABLE)
        reader.poll()
        retry(writer.flush)
        print(number, flush=True)


def retry(action: Callable[[], object]) -> None:
    """Run an action, and try it again after an error, as the collector's jobs do."""
    for _ in range(ATTEMPTS):
        try:
            action()
        except CollectorError as error:
            print(error, file=sys.stderr)
        else:
            return
    raise SystemExit("it failed in every attempt")


if __name__ == "__main__":
    main()
