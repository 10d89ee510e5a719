"""Builds until February 2024, which name tasks only where they begin. No such server is run here: the lines are
those of public reports (ggml-org/llama.cpp 5104 and others of that time), with the counts that they have there.
"""

import pytest

from collector.parsers.log.lines import parse_records
from collector.parsers.requests.request import Request
from collector.parsers.requests.tracker import RequestTracker

BEGIN = """slot {slot} is processing [task id: {task}]
slot {slot} : in cache: {cached} tokens | to process: 1715 tokens
slot {slot} : kv cache rm - [{cached}, end)
"""
TIMINGS = """
print_timings: prompt eval time =   10210.03 ms /  1715 tokens (    5.95 ms per token,   167.97 tokens per second)
print_timings:        eval time =   11514.67 ms /   {generated} runs   (  106.62 ms per token,     9.38 tokens per second)
print_timings:       total time =   21724.69 ms
"""
ACCESS = (
    '{"timestamp":1704790118,"level":"INFO","function":"log_server_request","line":2724,"message":"request",'
    '"remote_addr":"127.0.0.1","remote_port":39708,"status":200,"method":"POST",'
    '"path":"/v1/chat/completions","params":{}}\n'
)
END = "slot {slot} released (1823 tokens in cache)\n"


def log_of(*parts: str, slot: int, task: int, cached: int = 0, generated: int = 0) -> str:
    """Return lines with these numbers in them."""
    text = "".join(parts)
    for name, number in (("slot", slot), ("task", task), ("cached", cached), ("generated", generated)):
        text = text.replace("{" + name + "}", str(number))
    return text


def tracked(text: str, *, cut: int = 0) -> list[Request]:
    """Return the requests of a log; with `cut`, of one that is read in two parts, by two collectors."""
    records = parse_records(text.split("\n"))
    times = [1000.0 + number for number in range(len(records))]
    first = RequestTracker()
    ended = first.add(records[:cut], times[:cut])
    second = RequestTracker(first.to_store())
    return [*ended, *second.add(records[cut:], times[cut:]), *second.end()]


@pytest.mark.parametrize("access", ["", ACCESS])
def test_a_request_has_its_tokens_and_durations(access: str) -> None:
    (one,) = tracked(log_of(BEGIN, TIMINGS, access, END, slot=1, task=7, cached=12, generated=108))
    assert (one.outcome, one.slot, one.task) == ("finished", 1, 7)
    assert (one.prompt_ms, one.generation_ms, one.total_ms) == (10210.03, 11514.67, 21724.69)
    assert (one.processed_tokens, one.cached_tokens, one.prompt_tokens) == (1715, 12, 1727)
    assert one.generated_tokens == 108
    assert one.context_tokens is None
    assert one.started_at == 1000
    assert one.ended_at == 1006 + bool(access)


def test_of_two_slots_each_has_its_own_durations() -> None:
    log = "".join(
        log_of(part, slot=slot, task=slot + 5, generated=100 + slot)
        for part in (BEGIN, TIMINGS, END)
        for slot in (0, 1)
    )
    assert [(one.task, one.generated_tokens, one.other_requests) for one in tracked(log)] == [
        (5, 100, 1), (6, 101, 1),
    ]  # fmt: skip


def test_a_request_that_was_cut_by_its_client_has_no_durations() -> None:
    (one,) = tracked(log_of(BEGIN, END, slot=0, task=1))
    assert (one.total_ms, one.generated_tokens, one.outcome) == (None, None, "no_generation")


@pytest.mark.parametrize("cut", range(9))
def test_requests_are_the_same_wherever_the_collector_was_restarted(cut: int) -> None:
    log = log_of(BEGIN, TIMINGS, END, slot=0, task=1, cached=3, generated=5) * 2
    assert tracked(log, cut=cut) == tracked(log)


def test_the_lines_of_the_access_log_are_those_of_the_requests() -> None:
    one = log_of(BEGIN, TIMINGS, ACCESS, END, slot=0, task=1, generated=5)
    assert [request.path for request in tracked(one * 3)] == ["/v1/chat/completions"] * 3
