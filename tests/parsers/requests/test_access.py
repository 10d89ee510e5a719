"""Lines of the access log that could be of several requests are given to none."""

import json

import pytest

from collector.parsers.log.lines import parse_records
from collector.parsers.requests.access import MAX_RECORDS
from collector.parsers.requests.request import Request
from collector.parsers.requests.tracker import RequestTracker
from tests.parsers.requests.test_tracker import launch, release, timings

CHAT, EMBEDDING = "POST /v1/chat/completions 127.0.0.1 200", "POST /v1/embeddings 10.0.0.7 200"


def access(text: str, second: int = 3) -> str:
    return f"0.{second:02}.000.000 I srv  log_server_r: done request: {text}"


def tracked(*lines: str) -> list[Request]:
    """Return the requests that have ended, whatever the tracker is stored and restored between two lines."""
    records = parse_records([access("GET /health 127.0.0.1 200", 0), *lines])
    tracker, found = RequestTracker(), []
    for record in records:
        found += tracker.add([record], [record.stamp or 0.0])
        tracker = RequestTracker(json.loads(json.dumps(tracker.to_store())))
    whole = RequestTracker()
    assert whole.add(records, [record.stamp or 0.0 for record in records]) == found
    return found


def paths(found: list[Request]) -> dict[int, str | None]:
    return {one.task: one.path for one in found}


@pytest.mark.parametrize("before_release", [False, True])
def test_a_request_has_its_line_whether_that_comes_before_its_release_or_after(before_release: bool) -> None:  # noqa: FBT001
    end = [release(7), access(f"{CHAT}")]
    (one,) = tracked(launch(7), *timings(7), *(reversed(end) if before_release else end))
    assert (one.method, one.path, one.client, one.status) == (
        "POST",
        "/v1/chat/completions",
        "127.0.0.1",
        200,
    )


def test_what_follows_a_question_mark_is_not_kept() -> None:
    line = access("POST /v1/completions?api_key=secret 127.0.0.1 200")
    assert paths(tracked(launch(7), *timings(7), release(7), line)) == {7: "/v1/completions"}


def test_two_requests_with_equal_lines_have_these() -> None:
    both = [launch(1, 0), launch(2, 1), *timings(1, 0), release(1, 0), *timings(2, 1), release(2, 1)]
    assert paths(tracked(*both, access(CHAT), access(CHAT))) == dict.fromkeys((1, 2), "/v1/chat/completions")


def test_two_requests_whose_lines_differ_have_none() -> None:
    both = [launch(1, 0), launch(2, 1), *timings(1, 0), release(1, 0), *timings(2, 1), release(2, 1)]
    assert paths(tracked(*both, access(CHAT), access(EMBEDDING))) == {1: None, 2: None}


def test_the_tasks_of_one_call_share_its_line_after_some_records() -> None:
    both = [launch(1, 0), launch(2, 1), *timings(1, 0), release(1, 0), *timings(2, 1), release(2, 1)]
    more = [access("GET /metrics 127.0.0.1 200")] * MAX_RECORDS
    assert paths(tracked(*both, access(EMBEDDING), *more)) == dict.fromkeys((1, 2), "/v1/embeddings")


def test_lines_of_calls_without_a_task_are_of_no_request() -> None:
    others = [
        access("POST /tokenize 127.0.0.1 200"),
        access(EMBEDDING),
        access("POST /completion 127.0.0.1 400"),
    ]
    found = tracked(
        *others, launch(7), access("GET /metrics 127.0.0.1 200"), *timings(7), release(7), access(CHAT)
    )
    assert paths(found) == {7: "/v1/chat/completions"}


def test_a_request_with_an_error_has_the_line_with_the_status_of_one() -> None:
    error = "0.02.000.000 E srv    send_error: task id = 7, error: too long"
    (one,) = tracked(launch(7), error, access("POST /completion 127.0.0.1 400"), release(7))
    assert (one.outcome, one.status) == ("error", 400)


def test_a_request_whose_line_is_lost_waits_for_some_records_only() -> None:
    lines = [
        launch(7),
        *timings(7),
        release(7),
        *[access("GET /metrics 127.0.0.1 200")] * (MAX_RECORDS - 1),
    ]
    assert not tracked(*lines)
    (one,) = tracked(*lines, access("GET /metrics 127.0.0.1 200"))
    assert (one.task, one.path) == (7, None)


def test_the_end_of_the_process_ends_the_wait() -> None:
    (one,) = tracked(launch(7), *timings(7), release(7), "0.00.001.000 I srv  llama_server: initializing ...")
    assert (one.outcome, one.path) == ("finished", None)


def test_lines_without_end_do_not_make_the_state_large() -> None:
    tracker = RequestTracker()
    records = parse_records([access(CHAT), launch(7), *timings(7), *[access(CHAT)] * 1000])
    tracker.add(records, [record.stamp or 0.0 for record in records])
    assert len(json.dumps(tracker.to_store())) < 5000


def test_a_stored_state_is_not_changed_by_being_read() -> None:
    """A step of the backfill that fails is tried again with the same state."""
    tracker = RequestTracker()
    records = parse_records([access(CHAT), launch(7), *timings(7), release(7)])
    tracker.add(records, [record.stamp or 0.0 for record in records])
    stored = tracker.to_store()
    before = json.dumps(stored)
    RequestTracker(stored)
    assert json.dumps(stored) == before
