"""A log that grows steadily and is rotated, written by a separate process.

Usage: python -m tests.support.log_flood LOG. It ends with its input, and prints how many lines it wrote.
"""

import select
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

LINES_A_SECOND = 150
ROTATION_LINES = 300
KEPT_ROTATIONS = 30  # one minute: a file that is deleted before it was read is lost
_PAUSE_SECONDS = 0.02


class LogFlood:
    """A writer that is active until the end of the `with` block, also while nobody reads.

    Args:
        path: of the log.

    Attributes:
        lines: how many it wrote; set when it has ended.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.lines = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(self._path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        written, _ = self._process.communicate()
        self.lines = int(written)


def message(number: int) -> str:
    """Return the text of a line as the collector stores it."""
    return f"srv  flood: line {number}"


def main() -> None:
    path, number = Path(sys.argv[1]), 0
    file = path.open("a", buffering=1)
    while not select.select([sys.stdin], [], [], _PAUSE_SECONDS)[0]:
        for _ in range(int(LINES_A_SECOND * _PAUSE_SECONDS)):
            stamp = f"{number // 60_000}.{number // 1000 % 60:02}.{number % 1000:03}.000"
            file.write(f"{stamp} I {message(number)}\n")
            number += 1
        if number % ROTATION_LINES == 0:
            _rotate(path)
            file.close()
            file = path.open("a", buffering=1)
    print(number)


def _rotate(path: Path) -> None:
    for age in range(KEPT_ROTATIONS, 0, -1):
        if (old := Path(f"{path}.{age}")).exists():
            old.rename(f"{path}.{age + 1}")
    Path(f"{path}.{KEPT_ROTATIONS + 1}").unlink(missing_ok=True)
    path.rename(f"{path}.1")


if __name__ == "__main__":
    main()
