"""Cron lines in local time.

APScheduler computes when a line is due. It is imported only for that, because importing it is slow and every
command checks the settings. So lines are checked here, by the rules of APScheduler: a property test compares
both on generated lines.
"""

import re
from calendar import monthrange
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_CRON_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat", "sun")
_LEAP_YEAR = 2000
_FAULT = "is no cron line of five fields, like 0 2 * * *"

_STEPS = re.compile(r"\*(?:/(?P<step>\d+))?$")
_NUMBERS = re.compile(r"(?P<first>\d+)(?:-(?P<last>\d+))?(?:/(?P<step>\d+))?$")
# Not anchored at the end: APScheduler ignores what follows a name (`jan/2` is January), so it is valid here.
_NAMES = re.compile(r"(?P<first>[a-z]+)(?:-(?P<last>[a-z]+))?", re.IGNORECASE)
_LAST_DAY = re.compile("last", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Field:
    """One of the five fields of a cron line: its values are from `low` to `high`, or have names."""

    name: str
    low: int
    high: int
    names: Sequence[str] = ()


_FIELDS = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day", 1, 31),
    _Field("month", 1, 12, _MONTHS),
    _Field("day of the week", 0, 6, _WEEKDAYS),
)


def cron_fault(line: str) -> str | None:
    """Return what is wrong with a cron line, or None."""
    texts = _with_named_weekdays(line)
    if len(texts) != len(_FIELDS):
        return f"{_FAULT} (it has {len(texts)} fields)"
    try:
        _, _, days, months, _ = (
            {value for part in text.split(",") for value in _parse_part(part, field)}
            for text, field in zip(texts, _FIELDS, strict=True)
        )
    except ValueError as error:
        return f"{_FAULT} ({error})"
    # The days of the week exclude no date: every date, even 29 February, is on each of them in some year.
    if min(days) > max(monthrange(_LEAP_YEAR, month)[1] for month in months):
        return "must name a day that some year has"
    return None


def is_due(line: str, last: float, now: float) -> bool:
    """Return whether a cron line was due at least once after the last time and until now.

    A local time that exists twice, in autumn, is due once.

    Args:
        line: a valid cron line, in local time.
        last: Unix seconds at which it was last carried out.
        now: Unix seconds.
    """
    from apscheduler.triggers.cron import CronTrigger

    trigger = CronTrigger.from_crontab(" ".join(_with_named_weekdays(line)))
    last_run = datetime.fromtimestamp(last, trigger.timezone)
    following = trigger.get_next_fire_time(None, last_run)
    while following and following.replace(tzinfo=None) <= last_run.replace(tzinfo=None):
        following = trigger.get_next_fire_time(following, following)
    return following is not None and following.timestamp() <= now


def _with_named_weekdays(line: str) -> list[str]:
    """Return the fields of a line, with names instead of numbers for the days of the week.

    Cron counts the days of the week from Sunday, APScheduler from Monday; names mean the same in both.
    """
    words = line.split()
    return words[:-1] + [
        re.sub(r"(?<![/\w])[0-7](?!\w)", lambda day: _CRON_WEEKDAYS[int(day[0])], word) for word in words[-1:]
    ]


def _parse_part(part: str, field: _Field) -> range:
    """Return the values that one part of a field names; parts are separated by commas.

    `last` counts as day 28: the check of dates must not refuse it in February.
    """
    if match := _STEPS.match(part):
        return _range(field, field.low, field.high, match["step"])
    if match := _NUMBERS.match(part):
        first = int(match["first"])
        last = int(match["last"]) if match["last"] else field.high if match["step"] else first
        return _range(field, first, last, match["step"])
    if field.names and (match := _NAMES.match(part)):
        names = [name.lower() for name in match.groups() if name]
        if set(names) <= set(field.names):
            first, last = (field.names.index(name) + field.low for name in (names[0], names[-1]))
            return _range(field, first, last, None)
    if field.name == "day" and _LAST_DAY.match(part):
        return range(28, 29)
    raise ValueError(f"{part!r:.20} is no {field.name}")


def _range(field: _Field, first: int, last: int, step: str | None) -> range:
    """Return the values from `first` to `last`, or raise ValueError if the field does not have them all."""
    if not field.low <= first <= last <= field.high:
        raise ValueError(
            f"the {field.name} must be from {field.low} to {field.high}, the smaller value first"
        )
    # For a step, APScheduler treats an end of 0 as no end: `0-0/5` is valid and means 0.
    if step is not None and not 0 < int(step) <= (last or field.high) - first:
        raise ValueError(f"the step of the {field.name} must be from 1 to the length of its range")
    return range(first, last + 1, int(step or 1))
