"""Lines of a router about the processes of its models, in all their forms."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.parsers.log.lines import parse_records
from collector.parsers.router_log import RouterEvent, parse_router_event

LINES = {
    "srv          load: spawning server instance with name=org/tiny-a:Q4_K_M on port 39569": RouterEvent(
        "spawned", "org/tiny-a:Q4_K_M", 39569
    ),
    "srv    unload_lru: models_max limit reached, removing LRU name=a b": RouterEvent("evicting", "a b"),
    "srv          tick: evicting idle LRU name=tiny-a for a queued request": RouterEvent(
        "evicting", "tiny-a"
    ),
    "srv        unload: stopping model instance name=tiny-b": RouterEvent("stopping", "tiny-b"),
    "srv        unload: unloading model instance name=tiny-b": RouterEvent("stopping", "tiny-b"),
    "srv    operator(): instance name=tiny-b exited with status -9": RouterEvent("exited", "tiny-b", 0, -9),
    "srv           run: instance name=gone on port 4 exited with status 1": RouterEvent(
        "exited", "gone on port 4", 0, 1
    ),
    "srv  llama_server: starting server in router mode. models will be loaded on-demand": RouterEvent(
        "started"
    ),
    "[39569] srv  llama_server: model loaded": RouterEvent("loaded", None, 39569),
    "[39569] main: model loaded": RouterEvent("loaded", None, 39569),
    "[  569] srv  handle_sleep: server is entering sleeping state": RouterEvent("sleeping", None, 569),
    "[39569] srv  handle_sleep: server is exiting sleeping state": RouterEvent("waking", None, 39569),
    "[39569] srv    load_model: initializing, n_slots = 4, n_ctx_slot = 1024": RouterEvent(
        "initialized", None, 39569
    ),
    "[39569] srv          init: initializing slots, n_slots = 4": RouterEvent("initialized", None, 39569),
}


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("stamp", ["", "0.24.921.021 I "])
def test_each_line_is_understood(line: str, stamp: str) -> None:
    port, separator, text = line.partition("] ") if line.startswith("[") else ("", "", line)
    (record,) = parse_records([f"{port}{separator}{stamp}{text}"])
    assert parse_router_event(record) == LINES[line]


@pytest.mark.parametrize(
    "line",
    [
        "srv  proxy_reques: proxying request to model gemma-270m on port 38729",
        "srv          load: spawning server instance with args:",
        "srv  llama_server: model loaded",  # a single server: it has no children
        "[39569] srv          load: spawning server instance with name=a on port 4",  # only a router has them
        "slot      release: id  0 | task 1 | stop processing: n_tokens = 2, truncated = 0",
        "the user wrote srv load: spawning server instance with name=a on port 4",
        "srv          load: spawning server instance with name=a on port 123456",
    ],
)
def test_other_lines_say_nothing(line: str) -> None:
    (record,) = parse_records([line])
    assert parse_router_event(record) is None


@given(st.text(max_size=80), st.sampled_from(sorted(LINES)))
def test_no_text_is_an_error(text: str, line: str) -> None:
    for record in parse_records([text + line, line + text, line[: len(text)]]):
        parse_router_event(record)
