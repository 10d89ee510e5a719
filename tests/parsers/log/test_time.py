"""Times of a backlog, where the clock stops for starts that it does not know."""

import pytest

from collector.parsers.log.lines import parse_records
from collector.parsers.log.record import Record, split_lines
from collector.parsers.log.time import StampClock, find_starts

END = 1_790_000_000


def line(second: int, message: str = "srv  test: line") -> str:
    return f"{second // 60}.{second % 60:02}.000.000 I {message}\n"


def records(text: str) -> list[Record]:
    return parse_records(split_lines(text.encode()))


@pytest.mark.parametrize("length", range(1, 60))
def test_a_stamp_that_is_cut_is_not_one_of_a_new_process(length: int) -> None:
    """Of a long log of one process only the beginning and the end are scanned."""
    lines = "".join(f"100.{n // 1000 % 60:02}.{n % 1000:03}.000 I text\n" for n in range(1000, 3000))
    text = lines + "x" * length + "\n"
    assert len(find_starts([text.encode()], END, None)) == 1


def test_the_clock_stops_before_the_first_process_and_continues_with_its_start() -> None:
    log = records(line(10) + line(40))
    clock = StampClock()
    assert clock.times_of_backlog(log, END) == []
    assert clock.times_of_backlog(log, END, [END - 40]) == [END - 30, END]


def test_the_clock_stops_before_lines_without_stamps_if_no_process_is_known() -> None:
    log = records("srv  test: no stamp\n" + line(10))
    clock = StampClock()
    assert clock.times_of_backlog(log, END) == []
    assert clock.times_of_backlog(log, END, [END - 10]) == [END - 10, END]


def test_the_clock_stops_in_the_middle_where_a_process_starts() -> None:
    log = records(line(10) + line(40) + line(5) + line(6))
    clock = StampClock({"0": (END - 100, 9.0)})
    assert clock.owner_stamp == 9.0
    assert clock.times_of_backlog(log, END) == [END - 90, END - 60]
    assert clock.times_of_backlog(log[2:], END, [END - 46, END - 6]) == [END - 1, END]


def test_a_known_process_needs_no_starts() -> None:
    clock = StampClock({"0": (END - 100, 9.0)})
    assert clock.times_of_backlog(records(line(10) + line(40)), END) == [END - 90, END - 60]
    assert clock.to_store() == {"0": (END - 100, 40.0)}


def test_starts_that_are_found_once_serve_all_processes_of_the_backlog() -> None:
    log = records(line(100) + line(50) + line(70))
    starts = find_starts([(line(100) + line(50) + line(70)).encode()], END, None)
    assert starts == [END - 170, END - 70]
    assert StampClock().times_of_backlog(log, END, starts) == [END - 70, END - 20, END]


def test_without_any_start_the_last_line_ends_with_the_file() -> None:
    clock = StampClock()
    assert clock.times_of_backlog(records(line(10)), END, []) == [END]


def test_times_given_in_several_calls_are_those_of_one_call() -> None:
    text = line(3) + line(30) + line(2) + line(1) + "no stamp\n" + line(0) + line(20)
    log, starts = records(text), find_starts([text.encode()], END, None)
    whole = StampClock().times_of_backlog(log, END, starts)
    for cut in range(len(log) + 1):
        clock = StampClock()
        times = clock.times_of_backlog(log[:cut], END, starts)
        stamp = clock.owner_stamp
        times += clock.times_of_backlog(log[cut:], END, None if stamp is not None else starts)
        assert times == whole


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_starts_do_not_depend_on_where_the_log_is_divided(size: int) -> None:
    log = (line(100) * 3 + line(50) + line(70)).encode()
    pieces = [log[start : start + size] for start in range(0, len(log), size)]
    assert find_starts(pieces, END, None) == [END - 170, END - 70]


def test_the_process_of_the_lines_before_counts_as_the_first() -> None:
    assert find_starts([line(5).encode()], END, 100.0) == [END - 105, END - 5]
    assert find_starts([line(110).encode()], END, 100.0) == [END - 110]


def test_a_child_that_wrote_the_last_line_shows_when_its_router_started() -> None:
    log = line(10, "srv load: spawning server instance with name=a on port 8081") + "[8081] " + line(20)
    assert find_starts([log.encode()], END, None) == [END - 30]


@pytest.mark.parametrize("together", [True, False])
def test_a_child_starts_when_its_router_says_so_however_late_it_is_read(together: bool) -> None:  # noqa: FBT001
    log = records(
        line(90, "srv          load: spawning server instance with name=a on port 4001")
        + "[4001] 0.00.250.000 I srv  llama_server: model loaded\n"
    )
    clock = StampClock({"0": (END - 100, 89.0)})
    moments = []
    for part in [log] if together else [log[:1], log[1:]]:
        clock.times_of_live(part, END - 9)
        moments += clock.moments_of_live(part, END - 9)
    assert moments == [END - 10, END - 9.75]
