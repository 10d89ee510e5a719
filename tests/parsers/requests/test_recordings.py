"""What real servers printed becomes exactly the requests that their clients know."""

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from collector.parsers.log.lines import parse_records
from collector.parsers.log.record import Record, split_lines
from collector.parsers.log.time import StampClock
from collector.parsers.requests.request import Request
from collector.parsers.requests.tracker import RequestTracker
from tests.support.paths import RECORDINGS

FOLDER = RECORDINGS / "requests"
SERVERS = sorted(path.name for path in FOLDER.iterdir())
WITHOUT_CACHE_COUNT = ("b5036",)
"""Builds whose answers do not say how much was cached."""


def records_of(server: str) -> list[Record]:
    return parse_records(split_lines((FOLDER / server / "server.log").read_bytes() + b"\n"))


def times_of(records: Sequence[Record]) -> list[float]:
    return [0.0 if record.stamp is None else record.stamp for record in records]


def requests_of(server: str) -> list[Request]:
    tracker, records = RequestTracker(), records_of(server)
    return [*tracker.add(records, times_of(records)), *tracker.end()]


def calls_of(server: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / server / "client.jsonl").read_text().splitlines()]


def known_by_clients(server: str) -> Counter[tuple[object, ...]]:
    """Return the facts of every call that was answered in full: an answer that was cut has none at the end."""
    timings = [
        call["timings"]
        for call in calls_of(server)
        if call.get("timings") and call["kind"] not in ("cancel", "killed")
    ]
    return Counter(
        facts(one.get("cache_n"), one["prompt_n"], one["prompt_ms"], one["predicted_n"], one["predicted_ms"])
        for one in timings
    )


def facts(
    cached: object, prompt: int, prompt_ms: float, generated: int, generation_ms: float
) -> tuple[object, ...]:
    # llama-server's log rounds milliseconds to two digits; its answers have three.
    return cached, prompt, f"{prompt_ms:.2f}", generated, f"{generation_ms:.2f}"


@pytest.mark.parametrize("server", SERVERS)
def test_every_finished_request_is_found_with_the_facts_that_its_client_got(server: str) -> None:
    found = Counter(
        facts(
            None if server in WITHOUT_CACHE_COUNT else one.cached_tokens,
            one.processed_tokens or 0,
            one.prompt_ms or 0,
            one.generated_tokens or 0,
            one.generation_ms or 0,
        )
        for one in requests_of(server)
        if one.outcome == "finished"
    )
    # Calls with several prompts or answers are several tasks; their clients get the facts of one of them.
    assert known_by_clients(server) - found == Counter()


@pytest.mark.parametrize("server", SERVERS)
def test_every_call_that_its_client_cut_is_cancelled(server: str) -> None:
    cut = sum(call["kind"] == "cancel" for call in calls_of(server))
    found = Counter(one.outcome for one in requests_of(server))
    # A call that is cut while it waits has no task; one that is cut at its very end has finished.
    assert found["cancelled"] <= max(cut, 5)
    assert (found["cancelled"] > 0) == (cut > 0)


@pytest.mark.parametrize("server", SERVERS)
def test_requests_are_the_same_wherever_the_collector_was_restarted(server: str) -> None:
    records = records_of(server)
    tracker, found = RequestTracker(), []
    for record in records:
        found += tracker.add([record], times_of([record]))
        tracker = RequestTracker(json.loads(json.dumps(tracker.to_store())))
    found += tracker.end()
    assert found == requests_of(server)


@pytest.mark.parametrize("server", SERVERS)
def test_the_stored_state_stays_small(server: str) -> None:
    tracker, largest = RequestTracker(), 0
    for record in records_of(server):
        tracker.add([record], times_of([record]))
        largest = max(largest, len(json.dumps(tracker.to_store())))
    assert largest < 12_000


@pytest.mark.parametrize("server", SERVERS)
def test_a_lost_line_costs_its_own_request_only(server: str) -> None:
    records, whole = records_of(server), requests_of(server)
    wrong = 0
    for seed in range(20):
        lost = random.Random(seed).randrange(len(records))
        rest = records[:lost] + records[lost + 1 :]
        tracker = RequestTracker()
        found = [*tracker.add(rest, times_of(rest)), *tracker.end()]
        missing = [one for one in map(alone, whole) if one not in list(map(alone, found))]
        wrong = max(wrong, len(missing))
    assert wrong <= 2  # the child of a call names its parent


def alone(request: Request) -> Request:
    """Return a request without what the lines of others tell of it, which may be lost."""
    return replace(request, other_requests=0, method=None, path=None, client=None, status=None)


def test_embeddings_have_their_tokens_and_no_generation() -> None:
    found = requests_of("b11434-embeddings")
    embeddings = [one for one in found if one.outcome == "no_generation"]
    assert len(embeddings) == 14
    assert all(one.processed_tokens == one.prompt_tokens == one.context_tokens for one in embeddings)
    assert {one.generated_tokens for one in embeddings} == {None}


def test_an_overlong_prompt_is_an_error_without_counts() -> None:
    errors = [one for one in requests_of("b11434-default") if one.outcome == "error"]
    assert len(errors) == 4
    assert all("exceeds the available context size" in str(one.error) for one in errors)
    assert {(one.prompt_tokens, one.context_tokens) for one in errors} == {(None, None)}


def test_speculation_counts_what_was_drafted_and_accepted() -> None:
    ended = [
        json.loads(line) for line in (FOLDER / "b11434-draft-model" / "events.jsonl").read_text().splitlines()
    ]
    metrics = next(event["metrics"] for event in reversed(ended) if "metrics" in event)
    found = requests_of("b11434-draft-model")
    drafted = sum(one.drafted_tokens or 0 for one in found)
    accepted = sum(one.accepted_tokens or 0 for one in found)
    assert 0 < drafted <= metrics["spec_decode_num_draft_tokens_total"]
    assert 0 < accepted <= metrics["spec_decode_num_accepted_tokens_total"]


def test_a_router_queues_requests_for_its_children_and_a_killed_child_ends_them() -> None:
    records = records_of("b11434-router")
    moments: list[float] = []
    StampClock().times_of_backlog(records, 1e9, [0.0], moments)
    found = RequestTracker().add(records, moments)
    assert Counter(one.outcome for one in found)["server_ended"] == 2
    queued = [one.queue_ms for one in found if one.queue_ms is not None]
    assert len(queued) > 20
    assert min(queued) >= 0
    assert {one.model for one in found} >= {"tiny-a"}


def test_the_children_of_one_call_know_their_parent() -> None:
    (child,) = [one for one in requests_of("b10229") if one.is_child]
    assert child.parent_task is not None
    assert child.parent_task < child.task


WITH_ACCESS_LOG = ("b7710", "b8672")


@pytest.mark.parametrize("server", WITH_ACCESS_LOG)
def test_requests_have_method_path_and_status_of_their_calls(server: str) -> None:
    calls = {
        f"{call['timings']['prompt_ms']:.2f}": (call["path"], call["status"])
        for call in calls_of(server)
        if call.get("timings") and call.get("status")
    }
    assert len(calls) >= 17
    found = requests_of(server)
    known = [one for one in found if f"{one.prompt_ms or 0:.2f}" in calls]
    assert len(known) >= 17
    with_path = [one for one in known if one.path]
    assert len(with_path) >= 0.8 * len(known)
    assert [(one.path, one.status) for one in with_path] == [
        calls[f"{one.prompt_ms:.2f}"] for one in with_path
    ]
    assert {(one.method, one.client) for one in found if one.path} == {("POST", "127.0.0.1")}
    assert {one.status for one in found if one.error} == {400}


@pytest.mark.parametrize("server", sorted(set(SERVERS) - set(WITH_ACCESS_LOG)))
def test_requests_without_an_access_log_have_no_path(server: str) -> None:
    assert {(one.method, one.path, one.client, one.status) for one in requests_of(server)} == {(None,) * 4}
