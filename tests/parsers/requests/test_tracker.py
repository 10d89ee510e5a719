"""Odd sequences of lines: what is lost, disordered or hostile costs its own request at most."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.parsers.log.lines import parse_records
from collector.parsers.requests.request import Request
from collector.parsers.requests.tracker import (
    MAX_OPEN,
    MAX_PROCESSES,
    MAX_REMEMBERED,
    RequestTracker,
)


def tracked(*lines: str, tracker: RequestTracker | None = None) -> list[Request]:
    records = parse_records(list(lines))
    return (tracker or RequestTracker()).add(records, [record.stamp or 0.0 for record in records])


def launch(task: int, slot: int = 0, second: int = 1) -> str:
    return (
        f"0.{second:02}.000.000 I slot launch_slot_: id  {slot} | task {task} | processing task, is_child = 0"
    )


def timings(task: int, slot: int = 0, second: int = 2) -> tuple[str, ...]:
    head = f"0.{second:02}.000.000 I slot print_timing: id  {slot} | task {task} | "
    return (
        f"{head}prompt eval time =     100.00 ms /    10 tokens (   10.00 ms per token,   100.00 tokens per second)",
        f"{head}       eval time =     200.00 ms /    20 tokens (   10.00 ms per token,   100.00 tokens per second)",
        f"{head}      total time =     300.00 ms /    30 tokens",
    )


def release(task: int, slot: int = 0, second: int = 3, tokens: int = 29) -> str:
    return f"0.{second:02}.000.000 I slot      release: id  {slot} | task {task} | stop processing: n_tokens = {tokens}, truncated = 0"


def test_a_whole_request() -> None:
    (one,) = tracked(launch(7), *timings(7), release(7))
    assert (one.outcome, one.started_at, one.ended_at) == ("finished", 1.0, 3.0)
    assert (one.prompt_tokens, one.cached_tokens, one.generated_tokens, one.other_requests) == (10, 0, 20, 0)


def test_requests_at_the_same_time_count_each_other() -> None:
    first, second, third = tracked(
        *(launch(1, 0), launch(2, 1), *timings(1, 0), release(1, 0), *timings(2, 1), release(2, 1)),
        *(launch(3, 0, 4), *timings(3, 0, 5), release(3, 0, 6)),
    )
    assert (first.other_requests, second.other_requests, third.other_requests) == (1, 1, 0)


def test_a_stamp_that_begins_anew_ends_what_is_open() -> None:
    (one,) = tracked(launch(7, second=9), "0.00.004.346 I srv  llama_server: initializing ...")
    assert (one.outcome, one.ended_at) == ("server_ended", 9.0)


def test_a_request_whose_end_was_lost_is_ended_by_the_next_one_but_not_at_once() -> None:
    tracker = RequestTracker()
    assert tracked(launch(1), launch(2, second=2), tracker=tracker) == []
    late = tracked(
        *timings(1), release(1), tracker=RequestTracker(json.loads(json.dumps(tracker.to_store())))
    )
    assert [one.outcome for one in late] == ["lost", "incomplete"]
    tracker = RequestTracker()
    (disordered,) = tracked(launch(1), launch(2, second=2), *timings(1), release(1), tracker=tracker)
    assert (disordered.task, disordered.outcome) == (1, "finished")


def test_an_end_without_a_beginning_is_incomplete() -> None:
    (one,) = tracked(*timings(7), release(7))
    assert (one.outcome, one.started_at, one.generated_tokens) == ("incomplete", None, 20)


def test_a_task_that_was_cancelled_before_it_began_is_cancelled() -> None:
    (one,) = tracked("0.00.500.000 W srv          stop: cancel task, id_task = 7", launch(7), release(7))
    assert one.outcome == "cancelled"


def test_text_of_a_prompt_that_looks_like_a_line_is_no_request() -> None:
    assert (
        tracked(
            "0.00.001.000 D srv  prompt: hello",
            "slot launch_slot_: id  0 | task 7 | processing task, is_child = 0",
            "slot      release: id  0 | task 7 | stop processing: n_tokens = 5, truncated = 0",
        )
        == []
    )


def test_a_hostile_log_cannot_make_the_state_large() -> None:
    tracker = RequestTracker()
    for task in range(3 * MAX_OPEN):
        tracked(
            f"0.01.000.000 I slot update_slots: id  {task} | task {task} | new prompt, n_ctx_slot = 1, task.n_tokens = 1",
            tracker=tracker,
        )
        tracked(f"0.01.000.000 W srv          stop: cancel task, id_task = {task + 10**9}", tracker=tracker)
    stored = tracker.to_store()["0"]
    assert len(stored["open"]) <= MAX_OPEN
    assert len(stored["cancelled"]) <= MAX_REMEMBERED


def test_a_log_with_any_number_of_ports_cannot_make_the_state_large() -> None:
    tracker = RequestTracker()
    found = []
    for port in range(1, 1000):
        found += tracked(f"[{port:5}] {launch(1)}", tracker=tracker)
    assert len(tracker.to_store()) == MAX_PROCESSES
    assert {one.outcome for one in found} == {"server_ended"}
    assert len(found) == 999 - MAX_PROCESSES


def test_a_server_that_is_started_again_without_stamps_is_understood() -> None:
    plain = [line.partition(" I ")[2] for line in (launch(0), *timings(0), release(0))]
    first, second = tracked(launch(7), "srv    load_model: loading model '/models/big.gguf'", *plain)
    assert (first.outcome, second.outcome, second.model) == ("server_ended", "finished", "big")


def test_a_state_of_another_version_is_used_as_far_as_it_is_known() -> None:
    tracker = RequestTracker()
    tracked(launch(7), tracker=tracker)
    stored = tracker.to_store()
    stored["0"]["open"][7]["of_a_newer_version"] = 1
    del stored["0"]["errors"]
    restored = RequestTracker(json.loads(json.dumps(stored)))
    (one,) = tracked(*timings(7), release(7), tracker=restored)
    assert one.outcome == "finished"


@pytest.mark.parametrize(
    "stored",
    [
        {"cursor": "no cursor"},
        {"0": "text"},
        {"0": {"open": {"seven": {}}}},
        {"0": {"open": {"7": {"task": 7}}}},
        {"0": {"open": {"7": {"port": 0, "task": 7, "started_at": "noon"}}}},
        {"0": {"open": [7]}},
        {"0": {"arrivals": ["noon"]}},
        {"0": {"last_stamp": "noon"}},
        {"0": {"last_stamp": float("inf")}},
        {"0": {"selected": {"0": [0.5, "half"]}}},
        {"0": {"selected": {"0": [0.5, float("nan")]}}},
        {"0": {"selected": {"0": [10**400, None]}}},
        {"0": {"arrivals": [float("inf")]}},
        {"0": {"open": {"7": {"port": 0, "task": 7, "started_at": float("inf")}}}},
        {"0": {"open": {"7": {"port": 0, "task": 7, "prompt_tokens": 2**63}}}},
        [7],
        7,
    ],
)
def test_a_state_that_no_version_wrote_is_ignored(stored: Any) -> None:
    tracker = RequestTracker(stored)
    assert not tracker.to_store()
    (one,) = tracked(launch(7), *timings(7), release(7), tracker=tracker)
    assert (one.outcome, one.started_at) == ("finished", 1.0)
    assert (one.slot_similarity, one.slot_kept_share) == (None, None)


def test_a_selection_that_waits_for_its_task_survives_a_restart() -> None:
    tracker = RequestTracker()
    line = "0.00.500.000 I slot get_availabl: id  0 | task -1 | selected slot by LCP similarity, sim_best = 0.750 (> 0.100 thold), f_keep = 0.500"
    tracked(line, tracker=tracker)
    restored = RequestTracker(json.loads(json.dumps(tracker.to_store())))
    (one,) = tracked(launch(7), *timings(7), release(7), tracker=restored)
    assert (one.slot_similarity, one.slot_kept_share) == (0.75, 0.5)


LINES = st.lists(
    st.one_of(
        st.builds(launch, st.integers(0, 4), st.integers(0, 2), st.integers(0, 59)),
        st.builds(release, st.integers(0, 4), st.integers(0, 2), st.integers(0, 59), st.integers(0, 99)),
        st.builds(lambda task: timings(task)[0], st.integers(0, 4)),
        st.builds(lambda task: timings(task)[2], st.integers(0, 4)),
        st.just("0.00.001.000 I srv  llama_server: initializing ..."),
        st.builds("0.01.000.000 W srv stop: cancel task, id_task = {}".format, st.integers(0, 4)),
        st.text(max_size=40),
    ),
    max_size=40,
)


@given(LINES)
def test_any_sequence_gives_each_task_at_most_as_often_as_it_began_or_ended(lines: list[str]) -> None:
    tracker = RequestTracker()
    found = []
    for line in lines:
        found += tracked(line, tracker=tracker)
        tracker = RequestTracker(json.loads(json.dumps(tracker.to_store())))
    for task in range(5):
        mentioned = sum(f"task {task} |" in line for line in lines)
        assert sum(one.task == task for one in found) <= mentioned
    for one in found:
        assert one.outcome
        assert all(
            value is None or value >= 0
            for value in (one.cached_tokens, one.prompt_tokens, one.generated_tokens)
        )
