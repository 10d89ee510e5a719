"""What a collector does in a minute, step by step, so that each of its system calls can be made to fail.

Usage: python -m tests.support.scripted_minute DATABASE LOG

Rounds of one sample and some log lines, each committed and then printed; a prune; a backup. Started again
it goes on where the database says that it was.
"""

import sys
import threading
from collections.abc import Callable
from pathlib import Path

from collector.config import RetentionSettings
from collector.database import Database
from collector.database.backup import BackupDirectory
from collector.database.buffer import Buffer
from collector.database.documented import METRICS
from collector.database.writer import Writer
from collector.errors import CollectorError
from collector.jobs.backup import back_up
from collector.jobs.prune import Prune
from collector.own_tables import OWN_TABLES
from collector.sources.log_file import LogFileReader
from collector.sources.log_reader import LogSink, stored_positions

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
        buffer.add_samples([(METRICS, METRICS.row({"timestamp": number}))])
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
