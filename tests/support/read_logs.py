"""A collector's log reading in a process of its own, to be killed: `python -m tests.support.read_logs DATABASE FILE`.

It polls and commits without pause, so that a kill hits every stage.
"""

import sys
import time
from pathlib import Path

from collector.errors import SourceAbsent
from tests.support.log_reading import file_collector


def main() -> None:
    database, *patterns = sys.argv[1:]
    with file_collector(Path(database), *patterns) as collector:
        print("ready", flush=True)
        while True:
            try:
                collector.poll()
            except SourceAbsent:
                continue  # between the renaming and the new file
            time.sleep(0.002)


if __name__ == "__main__":
    main()
