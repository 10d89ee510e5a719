"""Cron lines in local time, with the meaning that Debian's cron gives them."""

import time
from datetime import UTC, datetime, timedelta

from cronsim import CronSim, CronSimError

_FIELDS = ("minute", "hour", "day-of-month", "month", "day-of-week")
_FAULT = "is no cron line of five fields, like 0 2 * * *"
_ANY_DAY = datetime(2000, 1, 1)  # noqa: DTZ001 - local times are compared as they are on the wall


def cron_fault(line: str) -> str | None:
    """Return what is wrong with a cron line, or None."""
    if len(line.split()) != len(_FIELDS):
        return f"{_FAULT} (it has {len(line.split())} fields)"
    try:
        CronSim(line, _ANY_DAY)
    except (CronSimError, ValueError, AssertionError) as error:
        field = str(error).removeprefix("Bad ")
        return f"{_FAULT} (the {field} is wrong)" if field in _FIELDS else _FAULT
    return None


def is_due(line: str, last: float, now: float) -> bool:
    """Return whether a cron line was due at least once after the last time and until now.

    The zone is that of the C library: unlike Python's zoneinfo it also knows zones without a file, such as
    `TZ=CET-1CEST,M3.5.0,M10.5.0/3`.

    Args:
        line: a valid cron line.
        last: Unix seconds at which it was last carried out.
        now: Unix seconds.
    """
    # Where the hour is fixed, times on the wall are compared: a time that exists twice, in autumn, is due
    # once, and one that is left out in spring is due at the change. A line for every hour ignores the change.
    offset_now = time.localtime(now).tm_gmtoff
    ignores_change = line.split()[1].startswith("*")
    offset_last = offset_now if ignores_change else time.localtime(max(last, 0.0)).tm_gmtoff
    following = next(CronSim(line, _wall_time(max(last, 0.0), offset_last)), None)
    return following is not None and following <= _wall_time(now, offset_now)


def _wall_time(moment: float, offset_seconds: int) -> datetime:
    """Return the local time at a Unix time."""
    return (datetime.fromtimestamp(moment, UTC) + timedelta(seconds=offset_seconds)).replace(tzinfo=None)
