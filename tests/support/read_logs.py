"""Log reading in a process that a test kills: `python -m tests.support.read_logs DATABASE FILE`.

It polls and commits almost without a pause, so that a kill may happen at every stage.
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
