"""Cron lines in local time."""

import re
from datetime import datetime

_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


def cron_fault(line: str) -> str | None:
    """What is wrong with a cron line, or None."""
    try:
        trigger = _trigger(line)
    except ValueError as error:
        return f"is no cron line of five fields, like 0 2 * * * ({error})"
    if trigger.get_next_fire_time(None, datetime.now(trigger.timezone)) is None:
        return "must name a day that some year has"
    return None


def is_due(line: str, last: float, now: float) -> bool:
    """Whether a time that the line names has come since the last run.

    The hour that the clock shows twice in autumn counts once.

    Args:
        line: five fields in local time.
        last: Unix seconds of the last run.
        now: Unix seconds.
    """
    trigger = _trigger(line)
    last_run = datetime.fromtimestamp(last, trigger.timezone)
    following = trigger.get_next_fire_time(None, last_run)
    while following and following.replace(tzinfo=None) <= last_run.replace(tzinfo=None):
        following = trigger.get_next_fire_time(following, following)
    return following is not None and following.timestamp() <= now


def _trigger(line: str):  # type: ignore[no-untyped-def]  # noqa: ANN202 - its library has no types
    from apscheduler.triggers.cron import CronTrigger

    # Cron counts the days of the week from Sunday, the library from Monday: names are the same to both.
    *others, weekdays = line.split() or [""]
    weekdays = re.sub(r"(?<![/\w])[0-7](?!\w)", lambda day: _DAYS[int(day[0]) % 7], weekdays)
    return CronTrigger.from_crontab(" ".join((*others, weekdays)))
