import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.sources.llama.metrics import TokenSpeed


def speeds(*readings: tuple[float | None, float | None]) -> list[float | None]:
    speed = TokenSpeed()
    return [speed.update(*reading) for reading in readings]


def test_the_speed_is_the_difference_of_tokens_over_the_difference_of_seconds() -> None:
    assert speeds((64, 0.8), (164, 2.8)) == [None, pytest.approx(50)]


def test_where_nothing_finished_the_speed_is_unknown() -> None:
    assert speeds((64, 0.8), (64, 0.8), (164, 2.8), (164, 2.8)) == [None, None, pytest.approx(50), None]


def test_the_first_reading_says_nothing_about_the_past() -> None:
    assert speeds((5000, 100.0)) == [None]


def test_a_run_that_began_at_zero_has_a_speed_from_its_first_reading_on() -> None:
    assert TokenSpeed(from_zero=True).update(100, 2.0) == pytest.approx(50)


def test_counters_that_fell_say_nothing_about_the_time_before() -> None:
    assert speeds((5000, 100.0), (100, 2.0), (200, 4.0)) == [None, None, pytest.approx(50)]


@pytest.mark.parametrize("reading", [(None, 1.0), (1, None), (None, None)])
def test_a_counter_that_the_server_does_not_report_is_unknown(
    reading: tuple[float | None, float | None],
) -> None:
    assert speeds((10, 1.0), reading, (60, 2.0)) == [None, None, pytest.approx(50)]


def test_differences_below_the_printed_resolution_wait_until_they_are_meaningful() -> None:
    # From 1,000,000 on the server prints tens: 30 tokens more may be 20 or 40.
    assert speeds((1_000_000, 9000.0), (1_000_030, 9000.6), (1_000_400, 9008.0)) == [
        None,
        None,
        pytest.approx(50),
    ]


@given(st.lists(st.tuples(st.integers(0, 5000), st.floats(0.01, 100)), min_size=1, max_size=20))
def test_the_speed_is_never_negative_and_near_the_true_one(requests: list[tuple[int, float]]) -> None:
    """Every request runs at 50 tokens a second; the counters are printed as the server prints them."""
    speed = TokenSpeed()
    tokens, seconds = 900_000.0, 18_000.0
    speed.update(float(f"{tokens:.6g}"), float(f"{seconds:.6g}"))
    for more, _ in requests:
        tokens, seconds = tokens + more, seconds + more / 50
        found = speed.update(float(f"{tokens:.6g}"), float(f"{seconds:.6g}"))
        assert found is None or found == pytest.approx(50, rel=0.11)
