import time
from collections.abc import Iterator
from datetime import datetime

import pytest
import tzlocal

from collector.parsers.cron import cron_fault, is_due

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
    """Local times at which something runs that is looked after every ten minutes."""
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
def test_what_is_no_cron_line_is_told(line: str) -> None:
    assert "no cron line of five fields" in (cron_fault(line) or "")


@pytest.mark.parametrize("line", ["0 0 30 2 *", "0 0 31 apr,jun *"])
def test_a_day_that_never_comes_is_told(line: str) -> None:
    assert cron_fault(line) == "must name a day that some year has"


@pytest.mark.parametrize(
    "line", ["0 2 * * *", "*/15 * * * *", "0 2 1 * 1-5", "0 2 * * */2", "0 2 * * mon,thu", "0 0 29 2 *"]
)
def test_cron_lines_are_taken(line: str) -> None:
    assert cron_fault(line) is None
