"""What a collector does in a minute, step by step, so that each of its system calls can be made to fail.

Usage: python -m tests.support.scripted_minute DATABASE LOG

Rounds of one sample and some log lines, each committed and then printed; a prune; a backup. Started again
it goes on where the database says that it was.
"""

import sys
import threading
from collections.abc import Callable
from pathlib import Path

from collector.backups.directory import BackupDirectory
from collector.backups.nightly import back_up
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
        insist(Prune(database, OWN_TABLES, settings, stop).run)
        place = BackupDirectory(path.parent / "backup", path)
        insist(lambda: back_up(database, place, 1, stop))


def collect(database: Database, log: str) -> None:
    buffer = Buffer(line_capacity=LINES // ROUNDS + 1)  # the lines take all rounds
    writer = Writer(database, buffer)
    reader = LogFileReader([log], LogSink(buffer), stored_positions(database))
    (newest,) = database.query("SELECT coalesce(max(timestamp), -1) AS round FROM metrics")
    for number in range(newest["round"] + 1, ROUNDS + 1):
        buffer.add([METRICS.insert(METRICS.row({"timestamp": number}))], Retention.DROPPABLE)
        reader.poll()
        insist(writer.flush)
        print(number, flush=True)


def insist(action: Callable[[], object]) -> None:
    """Try again what fails, as the collector's timers do."""
    for _ in range(ATTEMPTS):
        try:
            action()
        except CollectorError as error:
            print(error, file=sys.stderr)
        else:
            return
    raise SystemExit("it failed again and again")


if __name__ == "__main__":
    main()
