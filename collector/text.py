"""Text for users: values, and what commands print."""

import sys
import time

_JUST_NOW_SECONDS = 2
_PROGRESS_AFTER_SECONDS = 1.0
_FUTURE_SECONDS = 60
_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"))


def printable(value: object, keep: str = "") -> str:
    """Return a value as text in which every control character is replaced.

    Names and messages from outside may contain escape sequences that a terminal would execute. Parts of file
    names that are not UTF-8, which could not be printed at all, are replaced as well.

    Args:
        value: the value.
        keep: characters that are not replaced, such as a newline.
    """
    return "".join(
        character if character.isprintable() or character in keep else "\N{REPLACEMENT CHARACTER}"
        for character in str(value)
    )


def say(text: str, *, error: bool = False) -> None:
    """Print what a command tells its user, made printable, on standard output or standard error."""
    print(printable(text, keep="\n"), file=sys.stderr if error else sys.stdout, flush=True)


class Progress:
    """A progress line on a terminal at standard error, shown from one second after the start on."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._is_terminal = sys.stderr.isatty()

    def show(self, text: str, *, last: bool = False) -> None:
        """Replace the line by a text; the last text remains."""
        if self._is_terminal and time.monotonic() - self._started > _PROGRESS_AFTER_SECONDS:
            sys.stderr.write(f"\x1b[2K{printable(text)}" + ("\n" if last else "\r"))
            sys.stderr.flush()


def format_number(value: object, unit: str = "", digits: int = 1) -> str:
    """Return a number with its unit; `unknown` for None, and for what another program stored instead."""
    return f"{value:,.{digits}f}{unit}" if isinstance(value, int | float) else "unknown"


def format_age(timestamp: object) -> str:
    """Return how long ago a Unix time was, as in `5 min ago`; `never` for None, `unknown` for no number.

    A time in the future is told: the clock was wrong then, or is wrong now.
    """
    if timestamp is None:
        return "never"
    if not isinstance(timestamp, int | float):
        return "unknown"
    seconds = time.time() - timestamp
    if seconds < -_FUTURE_SECONDS:
        return f"in the future by {format_duration(-seconds)}: check the clock"
    return "just now" if seconds < _JUST_NOW_SECONDS else f"{format_duration(seconds)} ago"


def format_duration(seconds: object) -> str:
    """Return a duration in the largest unit of which there are at least two; `unknown` for no number."""
    if not isinstance(seconds, int | float):
        return "unknown"
    for size, unit in _UNITS:
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:,.0f} s"
