"""Builds of 2024 and ik_llama.cpp, whose lines have named values. No server prints them here: the lines are
put together after those in public issues (ggml-org/llama.cpp 6646, 7637, 7742, 8359).
"""

import json
from collections.abc import Callable

import pytest

from collector.parsers.log.lines import parse_records
from collector.parsers.requests.request import Request
from collector.parsers.requests.tracker import RequestTracker

Values = dict[str, object]


def as_text(function: str, message: str, values: Values, at: int) -> str:
    named = " ".join(f"{name}={json.dumps(value)}" for name, value in values.items())
    return f'INFO [{function:>24}] {message} | tid="140137934626816" timestamp={at} {named}'


def as_json(function: str, message: str, values: Values, at: int) -> str:
    fields = {
        "tid": "14964",
        "timestamp": at,
        "level": "INFO",
        "function": function,
        "line": 321,
        "msg": message,
    }
    return json.dumps(fields | values, separators=(",", ":"))


def as_early_json(function: str, message: str, values: Values, at: int) -> str:
    """Until March 2024."""
    fields = {"timestamp": at, "level": "INFO", "function": function, "line": 321, "message": message}
    names = {"id_slot": "slot_id", "id_task": "task_id"}
    named = {names.get(name, name): value for name, value in values.items()}
    return json.dumps(fields | named, separators=(",", ":"))


Print = Callable[[str, str, Values, int], str]
FORMS = pytest.mark.parametrize("print_line", [as_text, as_json, as_early_json])


def lines(print_line: Print, task: int, slot: int, at: int) -> list[str]:
    """Return the lines of a request: 27 tokens processed after 272 cached ones, 25 generated."""
    ids: Values = {"id_slot": slot, "id_task": task}
    timings = (
        ("prompt eval time     =    2684.39 ms /    27 tokens (   99.42 ms per token,    10.06 tokens per second)", {"t_prompt_processing": 2684.386, "n_prompt_tokens_processed": 27}),
        ("generation eval time =    3559.27 ms /    25 runs   (  142.37 ms per token,     7.02 tokens per second)", {"t_token_generation": 3559.272, "n_decoded": 25}),
        ("          total time =    6243.66 ms", {"t_total": 6243.658}),
    )  # fmt: skip
    end: Values = {
        "n_ctx": 1536,
        "n_past": 323,
        "n_system_tokens": 0,
        "n_cache_tokens": 323,
        "truncated": False,
    }
    return [
        print_line("launch_slot_with_task", "slot is processing task", ids, at),
        print_line("update_slots", "kv cache rm [p0, end)", {**ids, "p0": 272}, at),
        *(print_line("print_timings", text, ids | values, at + 7) for text, values in timings),
        print_line("update_slots", "slot released", ids | end, at + 7),
        print_line("log_server_request", "request", {"remote_addr": "127.0.0.1", "status": 200}, at + 7),
    ]


def tracked(printed: list[str]) -> list[Request]:
    records = parse_records(printed)
    return RequestTracker().add(records, [record.time or 0.0 for record in records])


@FORMS
def test_a_request_has_its_tokens_durations_and_times(print_line: Print) -> None:
    (one,) = tracked(lines(print_line, 19, 3, 1_717_067_379))
    assert (one.outcome, one.slot, one.task) == ("finished", 3, 19)
    assert (one.started_at, one.ended_at) == (1_717_067_379, 1_717_067_386)
    assert (one.prompt_ms, one.generation_ms, one.total_ms) == (2684.39, 3559.27, 6243.66)
    assert (one.processed_tokens, one.cached_tokens, one.prompt_tokens) == (27, 272, 299)
    assert (one.generated_tokens, one.context_tokens, one.truncated) == (25, 323, False)


@FORMS
def test_requests_of_several_slots_are_told_apart(print_line: Print) -> None:
    begin = 1_717_067_379
    first, second = (lines(print_line, 5, 0, begin), lines(print_line, 6, 1, begin))
    ended = tracked([line for pair in zip(first, second, strict=True) for line in pair])
    assert [(one.task, one.outcome, one.other_requests) for one in ended] == [
        (5, "finished", 1),
        (6, "finished", 1),
    ]


def test_ik_llama_cpp_mixes_both_forms() -> None:
    """Its durations are the record of several lines that llama.cpp printed in 2025."""
    begin = 1_760_000_000
    launch, cached, *_, released, _ = lines(as_text, 5, 0, begin)
    (one,) = tracked(
        [
            launch,
            cached,
            "slot print_timing: id  0 | task 5 | ",
            "prompt eval time =    2684.39 ms /    27 tokens (   99.42 ms per token,    10.06 tokens per second)",
            "       eval time =    3559.27 ms /    25 tokens (  142.37 ms per token,     7.02 tokens per second)",
            "      total time =    6243.66 ms /    52 tokens",
            released,
        ]
    )
    assert (one.outcome, one.total_ms, one.prompt_tokens, one.generated_tokens) == (
        "finished",
        6243.66,
        299,
        25,
    )


@pytest.mark.parametrize(
    "line",
    [
        'INFO [ print_timings] prompt eval time = 1.00 ms / 5 tokens | tid="1" timestamp=1717067379',
        'INFO [ update_slots] slot released | tid="1" timestamp=1717067379 id_slot=0 id_task=-1 n_past=1 truncated=false',
        'INFO [ main] text | tid="1" timestamp=1717067379 prompt="slot released id_slot=0 id_task=5 n_past=1 truncated=false"',
    ],
)
def test_a_line_without_its_ids_tells_of_no_request(line: str) -> None:
    (one,) = tracked([line, *lines(as_text, 5, 0, 1_717_067_380)])
    assert (one.outcome, one.total_ms) == ("finished", 6243.66)
