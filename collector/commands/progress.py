"""How far long work is: one line on a terminal."""

import sys
import time

_SHOWN_AFTER_SECONDS = 1.0


class Progress:
    """A line on standard error that is written over and over, once the work takes longer than a second."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._is_terminal = sys.stderr.isatty()

    def show(self, text: str, *, last: bool = False) -> None:
        """Show it; the last text stays."""
        if self._is_terminal and time.monotonic() - self._started > _SHOWN_AFTER_SECONDS:
            shown = "".join(character if character.isprintable() else "?" for character in text)
            print(f"\x1b[2K{shown}", end="\n" if last else "\r", file=sys.stderr, flush=True)
