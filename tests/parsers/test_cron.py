import time
from collections.abc import Iterator
from datetime import datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collector.parsers.cron import cron_fault, is_due

STEP_SECONDS, DAY = 600, 86_400


@pytest.fixture(autouse=True)
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


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
        ("30 2 * * *", ["28. 02:30+0100", "29. 03:00+0200", "30. 02:30+0200"]),
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
    assert "(the day-of-month is wrong)" in (cron_fault(line) or "")


@pytest.mark.parametrize(
    "line", ["0 2 * * *", "*/15 * * * *", "0 2 1 * 1-5", "0 2 * * */2", "0 2 * * mon,thu", "0 0 29 2 *"]
)
def test_a_cron_line_is_accepted(line: str) -> None:
    assert cron_fault(line) is None


@pytest.mark.parametrize(
    ("weekdays", "days"),
    [
        ("1-5/2", ["09", "11", "13"]),
        ("0-3", ["08", "09", "10", "11"]),
        ("5-7", ["08", "13", "14"]),
        ("sun-tue", ["08", "09", "10"]),
        ("6,7", ["08", "14"]),
    ],
)
def test_ranges_of_the_days_of_the_week_mean_what_cron_says(weekdays: str, days: list[str]) -> None:
    assert [run[:2] for run in runs(f"0 12 * * {weekdays}", "2026-11-08T00:00", 7)] == days


@pytest.mark.parametrize("line", ["0 0 * * *", "30 0 * * *", "59 0 * * *"])
def test_the_night_after_the_change_to_summer_time_is_not_left_out(line: str) -> None:
    assert [run[:2] for run in runs(line, "2026-03-27T12:00", 4)] == ["28", "29", "30", "31"]


def test_a_line_for_every_hour_runs_every_hour_of_both_nights() -> None:
    assert len(runs("0 * * * *", "2026-10-24T12:00", 1)) == 24
    assert len(runs("0 * * * *", "2026-03-28T12:00", 1)) == 24


@pytest.mark.parametrize(
    "zone", ["UTC0", "CET-1CEST,M3.5.0,M10.5.0/3", "<+0530>-5:30", ":Europe/Berlin", "No/Where", ""]
)
def test_a_zone_that_only_the_c_library_knows_is_used(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    local = time.mktime((2026, 11, 8, 2, 0, 0, 0, 0, 0))
    assert is_due("0 2 * * *", local - 3600, local)
    assert not is_due("0 2 * * *", local - 3600, local - 60)
    assert not is_due("0 2 * * *", local, local + 3600)


def test_a_time_long_ago_or_impossible_is_over() -> None:
    assert is_due("0 2 * * *", -1e300, unix("2026-11-08T12:00"))


NUMBERS = st.integers(0, 70).map(str) | st.sampled_from(["00", "007", "\u0663", "9" * 5000, ""])
NAMES = st.sampled_from(["jan", "FEB", "sun", "Mon", "last", "L", "LW", "5L", "mon#1", "mon#1/2", "foo"])
VALUES = NUMBERS | NAMES
PARTS = st.one_of(
    st.just("*"),
    VALUES,
    st.builds("{}-{}".format, VALUES, VALUES),
    st.builds("{}/{}".format, VALUES | st.just("*"), NUMBERS),
    st.text(alphabet="0123456789*/-,?L#janfebsumotl\u017f\u212a", max_size=8),
)
FIELDS = st.lists(PARTS, min_size=1, max_size=3).map(",".join)
LINES = st.lists(FIELDS, min_size=3, max_size=7).map(" ".join)


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(LINES | st.text(max_size=30))
def test_a_line_is_refused_with_a_reason_or_can_be_evaluated(line: str) -> None:
    fault = cron_fault(line)
    if fault is None:
        assert is_due(line, 0, unix("2026-11-08T12:00")) in (True, False)
    else:
        assert fault.startswith("is no cron line of five fields")
