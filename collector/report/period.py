"""The time that a report is about, and how its plots divide it."""

import time
from dataclasses import dataclass
from functools import cached_property

MINUTE, HOUR, DAY = 60, 3600, 86_400
_POINTS = 240
"""More than that many points a line nobody tells apart in a plot."""
_TICKS = 8
_TICK_STEPS = (MINUTE, 5 * MINUTE, 15 * MINUTE, HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR, DAY, 7 * DAY, 28 * DAY)


@dataclass(frozen=True)
class Period:
    """From `begin` until `end`, both Unix seconds."""

    begin: int
    end: int

    @property
    def seconds(self) -> int:
        """How long it lasts."""
        return self.end - self.begin

    @property
    def slice_seconds(self) -> int:
        """The time for which one point of a line stands: all readings in it become their mean."""
        return max(1, self.seconds // _POINTS)

    @property
    def bar_format(self) -> str:
        """The local time of a bar, for strftime here and in SQLite: a minute, an hour or a day."""
        if self.seconds <= 2 * HOUR:
            return "%Y-%m-%d %H:%M"
        return "%Y-%m-%d %H:00" if self.seconds <= 3 * DAY else "%Y-%m-%d"

    @cached_property
    def bars(self) -> list[str]:
        """All bars in it, also those without anything to show; an hour that the clock repeats is one."""
        step = MINUTE if self.seconds <= 2 * HOUR else HOUR  # no day is shorter than that
        times = [*range(self.begin, self.end, step), self.end]
        return list(dict.fromkeys(local(moment, self.bar_format) for moment in times))

    @cached_property
    def ticks(self) -> list[int]:
        """Round local times, a few of them."""
        shortest = self.seconds / _TICKS
        step = next((step for step in _TICK_STEPS if step >= shortest), int(shortest))
        behind = (self.begin + time.localtime(self.begin).tm_gmtoff) % step
        return list(range(self.begin - behind + step, self.end + 1, step))

    def tick_label(self, moment: float) -> str:
        """A moment as it is written below a plot."""
        if self.seconds <= DAY:
            return local(moment, "%H:%M")
        return local(moment, "%m-%d %H:%M" if self.seconds <= _TICKS * DAY else "%Y-%m-%d")


def local(moment: float, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """Unix seconds in local time."""
    return time.strftime(form, time.localtime(moment))
