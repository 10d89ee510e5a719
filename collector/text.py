"""Values as text for people."""

import time

_JUST_NOW_SECONDS = 2


def plain(text: object) -> str:
    """Text from outside, without what a terminal would obey."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in str(text)
    )


def number(value: float | None, unit: str = "", digits: int = 1) -> str:
    """A number for people; None is unknown."""
    return "unknown" if value is None else f"{value:,.{digits}f}{unit}"


def ago(timestamp: int | None) -> str:
    """How long ago that was; None is never."""
    if timestamp is None:
        return "never"
    seconds = time.time() - timestamp
    return "just now" if seconds < _JUST_NOW_SECONDS else f"{duration(seconds)} ago"


def duration(seconds: float | None) -> str:
    """A time for people, in its largest unit of which there are two; None is unknown."""
    if seconds is None:
        return "unknown"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:,.0f} s"
