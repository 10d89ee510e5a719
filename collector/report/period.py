"""The period of a report, and its division into points, bars and ticks of the plots."""

import time
from dataclasses import dataclass
from functools import cached_property

MINUTE, HOUR, DAY = 60, 3600, 86_400
_POINTS = 240
"""Number of points of a line: more cannot be distinguished in a plot."""
_TICKS = 8
_TICK_STEPS = (MINUTE, 5 * MINUTE, 15 * MINUTE, HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR, DAY, 7 * DAY, 28 * DAY)


@dataclass(frozen=True)
class Period:
    """The time from `begin` to `end`, both Unix seconds."""

    begin: int
    end: int

    @property
    def seconds(self) -> int:
        """Its length."""
        return self.end - self.begin

    @property
    def slice_seconds(self) -> int:
        """The time that one point of a line covers: the point is the mean of all readings in it."""
        return max(1, self.seconds // _POINTS)

    @property
    def bar_format(self) -> str:
        """The strftime format of a bar's local time, here and in SQLite: a minute, an hour or a day."""
        if self.seconds <= 2 * HOUR:
            return "%Y-%m-%d %H:%M"
        return "%Y-%m-%d %H:00" if self.seconds <= 3 * DAY else "%Y-%m-%d"

    @cached_property
    def bars(self) -> list[str]:
        """The labels of all bars, also of empty ones; an hour that the clock repeats in autumn is one bar."""
        step = MINUTE if self.seconds <= 2 * HOUR else HOUR  # also for days: no bar is skipped
        times = [*range(self.begin, self.end, step), self.end]
        return list(dict.fromkeys(local(moment, self.bar_format) for moment in times))

    @cached_property
    def ticks(self) -> list[int]:
        """About eight round local times, as Unix seconds."""
        shortest = self.seconds / _TICKS
        step = next((step for step in _TICK_STEPS if step >= shortest), int(shortest))
        past_step = (self.begin + time.localtime(self.begin).tm_gmtoff) % step
        return list(range(self.begin - past_step + step, self.end + 1, step))

    def tick_label(self, moment: float) -> str:
        """Return the label of a time below a plot."""
        if self.seconds <= DAY:
            return local(moment, "%H:%M")
        return local(moment, "%m-%d %H:%M" if self.seconds <= _TICKS * DAY else "%Y-%m-%d")


def local(moment: float, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """Return Unix seconds as local time."""
    return time.strftime(form, time.localtime(moment))
