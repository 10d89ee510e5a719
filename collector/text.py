"""Formatting of values as text for users."""

import time

_JUST_NOW_SECONDS = 2
_FUTURE_SECONDS = 60
_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"))


def printable(value: object) -> str:
    """Return a value as text in which every control character is replaced.

    Names and messages from outside may contain escape sequences that a terminal would execute.
    """
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in str(value)
    )


def format_number(value: float | None, unit: str = "", digits: int = 1) -> str:
    """Return a number with its unit; `unknown` for None."""
    return "unknown" if value is None else f"{value:,.{digits}f}{unit}"


def format_age(timestamp: int | None) -> str:
    """Return how long ago a Unix time was, as in `5 min ago`; `never` for None.

    A time in the future is told: the clock was wrong then, or is wrong now.
    """
    if timestamp is None:
        return "never"
    seconds = time.time() - timestamp
    if seconds < -_FUTURE_SECONDS:
        return f"in the future by {format_duration(-seconds)}: check the clock"
    return "just now" if seconds < _JUST_NOW_SECONDS else f"{format_duration(seconds)} ago"


def format_duration(seconds: float | None) -> str:
    """Return a duration in the largest unit of which there are at least two; `unknown` for None."""
    if seconds is None:
        return "unknown"
    for size, unit in _UNITS:
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:,.0f} s"
