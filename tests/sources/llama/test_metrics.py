import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.sources.llama.metrics import TokenSpeed


def speeds(*readings: tuple[float | None, float | None]) -> list[float | None]:
    speed = TokenSpeed()
    return [speed.update(*reading) for reading in readings]


def test_the_speed_is_the_growth_of_tokens_divided_by_the_growth_of_seconds() -> None:
    assert speeds((64, 0.8), (164, 2.8)) == [None, pytest.approx(50)]


def test_the_speed_is_unknown_if_no_request_finished() -> None:
    assert speeds((64, 0.8), (64, 0.8), (164, 2.8), (164, 2.8)) == [None, None, pytest.approx(50), None]


def test_the_first_reading_of_a_run_has_no_speed() -> None:
    assert speeds((5000, 100.0)) == [None]


def test_a_run_whose_counters_began_at_0_has_a_speed_in_its_first_reading() -> None:
    assert TokenSpeed(from_zero=True).update(100, 2.0) == pytest.approx(50)


def test_counters_that_fell_have_no_speed() -> None:
    assert speeds((5000, 100.0), (100, 2.0), (200, 4.0)) == [None, None, pytest.approx(50)]


@pytest.mark.parametrize("reading", [(None, 1.0), (1, None), (None, None)])
def test_the_speed_is_unknown_if_a_counter_is_not_reported(
    reading: tuple[float | None, float | None],
) -> None:
    assert speeds((10, 1.0), reading, (60, 2.0)) == [None, None, pytest.approx(50)]


def test_growth_below_the_printed_resolution_is_added_to_the_next_one() -> None:
    # From 1,000,000 on the server prints tens: 30 tokens more may be 20 or 40.
    assert speeds((1_000_000, 9000.0), (1_000_030, 9000.6), (1_000_400, 9008.0)) == [
        None,
        None,
        pytest.approx(50),
    ]


@given(st.lists(st.tuples(st.integers(0, 5000), st.floats(0.01, 100)), min_size=1, max_size=20))
def test_the_speed_is_within_11_percent_of_the_true_one(requests: list[tuple[int, float]]) -> None:
    """Every request generates 50 tokens per second; counters have 6 digits, as the server prints them."""
    speed = TokenSpeed()
    tokens, seconds = 900_000.0, 18_000.0
    speed.update(float(f"{tokens:.6g}"), float(f"{seconds:.6g}"))
    for more, _ in requests:
        tokens, seconds = tokens + more, seconds + more / 50
        found = speed.update(float(f"{tokens:.6g}"), float(f"{seconds:.6g}"))
        assert found is None or found == pytest.approx(50, rel=0.11)
