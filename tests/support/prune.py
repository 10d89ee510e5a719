"""Prune the log lines of a database, for tests that kill this process meanwhile.

Usage: python -m tests.support.prune DATABASE ROWS
"""

import sys
import threading
from pathlib import Path

from collector.database import Database
from collector.history.retention import Prune
from collector.settings import RetentionSettings


def main() -> None:
    settings = RetentionSettings(metrics_max_rows=0, logs_max_rows=int(sys.argv[2]))
    with Database(Path(sys.argv[1])) as database:
        print("ready", flush=True)
        Prune(database, (), settings, threading.Event()).run()
        print("done", flush=True)


if __name__ == "__main__":
    main()
