import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
import tzlocal
from apscheduler.triggers.cron import CronTrigger
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collector.parsers.cron import _with_named_weekdays, cron_fault, is_due

STEP_SECONDS, DAY = 600, 86_400


@pytest.fixture(autouse=True)
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    _set_zone()
    yield
    monkeypatch.undo()
    _set_zone()


def _set_zone() -> None:
    time.tzset()
    tzlocal.reload_localzone()


def unix(local: str) -> float:
    return datetime.fromisoformat(local).timestamp()


def runs(line: str, start: str, days: int) -> list[str]:
    """Return the local times at which something runs that is checked every ten minutes."""
    last = now = unix(start)
    found = []
    while now < unix(start) + days * DAY:
        now += STEP_SECONDS
        if is_due(line, last, now):
            last = now
            found.append(datetime.fromtimestamp(now).astimezone().strftime("%d. %H:%M%z"))
    return found


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("0 2 * * *", ["24. 02:00+0200", "25. 02:00+0200", "26. 02:00+0100"]),
        ("30 2 * * *", ["24. 02:30+0200", "25. 02:30+0200", "26. 02:30+0100"]),
        ("0 3 * * *", ["24. 03:00+0200", "25. 03:00+0100", "26. 03:00+0100"]),
    ],
)
def test_in_the_autumn_night_it_runs_once(line: str, expected: list[str]) -> None:
    assert runs(line, "2026-10-23T12:00", 3) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("0 2 * * *", ["28. 02:00+0100", "29. 03:00+0200", "30. 02:00+0200"]),
        ("30 2 * * *", ["28. 02:30+0100", "29. 03:30+0200", "30. 02:30+0200"]),
        ("0 3 * * *", ["28. 03:00+0100", "29. 03:00+0200", "30. 03:00+0200"]),
    ],
)
def test_in_the_spring_night_it_runs_once(line: str, expected: list[str]) -> None:
    assert runs(line, "2026-03-27T12:00", 3) == expected


def test_many_missed_times_are_one_run() -> None:
    assert is_due("0 2 * * *", unix("2026-01-01T02:00"), unix("2026-02-01T12:00"))
    assert not is_due("0 2 * * *", unix("2026-02-01T12:00"), unix("2026-02-02T01:59"))


@pytest.mark.parametrize("sunday", ["0", "7", "sun"])
def test_days_of_the_week_are_counted_from_sunday_as_cron_does(sunday: str) -> None:
    assert runs(f"0 2 * * {sunday}", "2026-11-01T12:00", 14) == ["08. 02:00+0100", "15. 02:00+0100"]


@pytest.mark.parametrize("line", ["", "x", "0 2 * *", "99 2 * * *", "0 2 * * 8", "0 2 * * * *"])
def test_a_line_that_is_no_cron_line_is_refused(line: str) -> None:
    assert "no cron line of five fields" in (cron_fault(line) or "")


@pytest.mark.parametrize("line", ["0 0 30 2 *", "0 0 31 apr,jun *"])
def test_a_day_that_never_comes_is_refused(line: str) -> None:
    assert cron_fault(line) == "must name a day that some year has"


@pytest.mark.parametrize(
    "line", ["0 2 * * *", "*/15 * * * *", "0 2 1 * 1-5", "0 2 * * */2", "0 2 * * mon,thu", "0 0 29 2 *"]
)
def test_a_cron_line_is_accepted(line: str) -> None:
    assert cron_fault(line) is None


NAMES = ["jan", "FEB", "dec", "sun", "Mon", "sat", "last", "Last", "foo", "7th", "lasting"]
NUMBERS = st.integers(0, 70).map(str) | st.sampled_from(["00", "007", "\u0663", "9" * 5000, ""])
VALUES = NUMBERS | st.sampled_from(NAMES)
RANGES = st.builds("{}-{}".format, VALUES, VALUES)
STEPPED = st.builds("{}/{}".format, VALUES | RANGES | st.just("*"), NUMBERS)
JUNK = st.text(alphabet="0123456789*/-,?L#janfebsumotl\u017f\u212a", max_size=8)
PARTS = st.just("*") | VALUES | RANGES | STEPPED | JUNK
FIELDS = st.lists(PARTS, min_size=1, max_size=3).map(",".join)
INVALID = st.lists(FIELDS, min_size=3, max_size=7).map(" ".join)


def valid_field(low: int, high: int, *names: str) -> st.SearchStrategy[str]:
    """Return lists of parts most of which a field with these limits has."""
    numbers = st.integers(low, high).map(str)
    pairs = st.tuples(st.integers(low, high), st.integers(low, high)).map(sorted)
    ranges = pairs.map(lambda pair: f"{pair[0]}-{pair[1]}")
    stepped = st.builds("{}/{}".format, numbers | ranges | st.just("*"), st.integers(1, high // 2))
    part = st.just("*") | numbers | ranges | stepped
    return st.lists(part | st.sampled_from(names) if names else part, min_size=1, max_size=2).map(",".join)


VALID = st.tuples(
    valid_field(0, 59),
    valid_field(0, 23),
    valid_field(1, 28, "last"),
    valid_field(1, 12, "jan", "FEB", "jun-dec", "feb/2"),
    valid_field(0, 7, "sun", "mon-Fri", "5-7"),
).map(" ".join)


def accepted_by_apscheduler(line: str) -> bool:
    try:
        CronTrigger.from_crontab(" ".join(_with_named_weekdays(line)))
    except ValueError:
        return False
    return True


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(VALID | INVALID)
def test_a_line_is_accepted_exactly_if_apscheduler_accepts_it(line: str) -> None:
    fault = cron_fault(line)
    assert (fault is None or "some year" in fault) == accepted_by_apscheduler(line), fault


@pytest.mark.parametrize("day", ["28", "29", "30", "31", "31,30", "29-31/2", "last", "*/29"])
@pytest.mark.parametrize("month", ["2", "4", "6,9,11", "2-12/9", "2-12/5", "feb,mar", "*/11"])
def test_a_day_is_refused_exactly_if_apscheduler_finds_no_time(day: str, month: str) -> None:
    trigger = CronTrigger.from_crontab(f"0 0 {day} {month} *", timezone=UTC)
    comes = trigger.get_next_fire_time(None, datetime.now(UTC)) is not None
    assert (cron_fault(f"0 0 {day} {month} *") is None) == comes
