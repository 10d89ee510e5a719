"""The progress of a long command, as one line on a terminal."""

import sys
import time

from collector.text import printable

_SHOWN_AFTER_SECONDS = 1.0


class Progress:
    """A progress line on a terminal at standard error, shown from one second after the start on."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._is_terminal = sys.stderr.isatty()

    def show(self, text: str, *, last: bool = False) -> None:
        """Replace the line by a text; the last text remains."""
        if self._is_terminal and time.monotonic() - self._started > _SHOWN_AFTER_SECONDS:
            print(f"\x1b[2K{printable(text)}", end="\n" if last else "\r", file=sys.stderr, flush=True)
