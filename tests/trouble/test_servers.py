"""Real trouble with llama-servers: which process is meant, and what it did.

Each table lists situations with the right value; an id names the situation and, where there is one, the report.
"""

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from collector.parsers.server_answers import ServedModel, parse_props
from collector.sources.llama.endpoint import Metrics, ServingProcess
from collector.sources.llama.events import ModelEvents, Observed
from collector.sources.llama.local.addresses import is_local, process_at
from collector.sources.llama.local.process import LlamaProcess
from collector.sources.llama.model_rows import ModelIndex
from collector.sources.llama.processes import LlamaProcessSource
from collector.sources.llama.runs import ServerRuns
from tests.support.llama_server import LlamaServer, free_port, process_name
from tests.support.odd_server import OddServer
from tests.support.sampled_server import ROUTER, Answers, Sampled, listed, metrics, process, props, sampled


@pytest.mark.parametrize("step", [3, -3, 3600, -3600, 86_400, -86_400])
def test_tokens_are_right_after_a_step_of_the_clock(tmp_path: Path, step: int) -> None:
    answers = Answers({"/props": props()})
    with sampled(tmp_path, answers) as server:
        for number, tokens in enumerate((700_000, 700_100, 714_390)):
            answers.by_path["/metrics"] = metrics(tokens)
            server.sample(1_000_000 + 5 * number + (step if number else 0))
        assert server.tokens == 14_390


def test_the_past_of_a_server_is_not_counted_where_another_program_wrote_metrics_before(
    tmp_path: Path,
) -> None:
    answers = Answers({"/props": props(), "/metrics": metrics(5_000_000)})
    with sampled(tmp_path, answers) as server:
        with server.database.transaction() as connection:
            connection.execute("INSERT INTO metrics (timestamp, uptime) VALUES (1, 1)")
        server.visible.processes = (process("--port", str(urlsplit(server.url).port)),)
        server.sample()
        answers.by_path["/metrics"] = metrics(5_000_016)
        server.sample()
        assert server.tokens == 16


UNKNOWN = {"cpu_usage": None, "memory_usage": None, "uptime": None}
NONE_RUNS = {"cpu_usage": 0.0, "memory_usage": 0.0, "uptime": 0.0}


@pytest.mark.parametrize(
    ("answers", "visible", "expected"),
    [
        pytest.param(True, (), UNKNOWN, id="hidepid, container, other name: it answers, no process is seen"),
        pytest.param(True, (process("--port", "1"),), UNKNOWN, id="only a server on another port is seen"),
        pytest.param(False, (), NONE_RUNS, id="nothing listens and no process is seen"),
        pytest.param(
            False,
            (process("--port", "1"),),
            {"cpu_usage": 1.0, "uptime": 50.0},
            id="one that listens elsewhere",
        ),
    ],
)
def test_usage_is_unknown_where_a_server_answers_whose_process_is_not_visible(
    tmp_path: Path, *, answers: bool, visible: tuple[LlamaProcess, ...], expected: Mapping[str, object]
) -> None:
    with sampled(tmp_path, Answers({"/props": props(), "/metrics": metrics(1)})) as server:
        if not answers:
            server.visible._url = "http://127.0.0.1:2"
            server.restart_collector("http://127.0.0.1:2")
        server.visible.processes = visible
        columns = server.sample()
        assert {name: columns[name] for name in expected} == expected


def test_usage_is_unknown_while_a_server_is_busy_or_cannot_be_reached(tmp_path: Path) -> None:
    watched = Sampled(tmp_path / "x.db", "http://no-such-host.invalid:8080")
    watched.visible.processes = (process("--port", "8080"),)
    assert watched.sample() == {**UNKNOWN, "active_models": None, "state": "unreachable"}
    watched.close()


@pytest.mark.parametrize(
    ("url", "processes", "expected"),
    [
        pytest.param("http://127.0.0.1:8080", [()], 0, id="default port of builds up to b11434"),
        pytest.param("http://127.0.0.1:9931", [()], 0, id="default port of newer builds"),
        pytest.param("http://127.0.0.1:8080", [("--port", "9000")], None, id="another port, same network"),
        pytest.param("http://198.51.100.7:8080", [("--port", "8080")], None, id="a remote server"),
        pytest.param("http://gpu-box.example:8080", [("--port", "8080")], None, id="a remote name"),
        pytest.param("http://localhost:9000", [("--port", "9000"), ()], 0, id="localhost"),
        pytest.param("http://[::1]:9000", [("--port=9000",), ()], 0, id="IPv6 literal"),
        pytest.param(
            "http://127.0.0.1:8080",
            [("--host", "192.0.2.5", "--port", "8080"), ("--port", "8080")],
            1,
            id="two servers on one port of different addresses",
        ),
        pytest.param(
            "http://127.0.0.1:8080",
            [("--host", "127.0.0.1,192.0.2.5", "--port", "8080"), ("--port", "1")],
            0,
            id="--host is a list",
        ),
        pytest.param("unix:///run/a.sock", [("--host", "/run/b.sock")], None, id="another socket"),
        pytest.param("unix:///run/a.sock", [("--host", "127.0.0.1,/run/a.sock")], 0, id="a socket in a list"),
    ],
)
def test_only_a_process_that_can_listen_at_a_url_is_its_server(
    url: str, processes: list[tuple[str, ...]], expected: int | None
) -> None:
    visible = [process(*arguments, pid=os.getpid() + number) for number, arguments in enumerate(processes)]
    visible = [replace(one, pid=os.getpid()) if expected is None else one for one in visible]
    found = process_at(url, visible)
    assert found == (None if expected is None else visible[expected])


def test_a_machine_that_may_bind_foreign_addresses_does_not_own_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """With net.ipv4.ip_nonlocal_bind, as keepalived needs it, binding shows nothing."""
    monkeypatch.setattr(socket.socket, "bind", lambda *_: None)
    assert not is_local("http://198.51.100.7:8080")
    assert is_local(f"http://{socket.gethostname()}:8080")


@pytest.mark.parametrize(
    ("first", "then", "expected"),
    [
        pytest.param((metrics(5, working=1), "1"), None, ["loaded", "crashed"], id="killed in work"),
        pytest.param((metrics(5), "1"), None, ["loaded", "unloaded"], id="ended while idle"),
        pytest.param(
            (metrics(5), "1"), (metrics(1), "2"), ["loaded", "unloaded", "loaded"], id="restarted between samples"
        ),
        pytest.param(
            (metrics(5, working=1), "1"), (metrics(1), "2"), ["loaded", "crashed", "loaded"],
            id="killed in work and restarted by systemd between samples",
        ),
        pytest.param((metrics(5), "1"), (metrics(6), "1"), ["loaded"], id="the same process"),
    ],
)  # fmt: skip
def test_the_end_and_the_restart_of_a_single_server_are_events(
    tmp_path: Path, first: tuple[str, str], then: tuple[str, str] | None, expected: list[str]
) -> None:
    answers = Answers({"/props": props(), "/metrics": first[0]}, header=first[1])
    with OddServer(answers.script) as server:
        watched = Sampled(tmp_path / "x.db", server.url)
        watched.sample(1000)
        if then:
            answers.by_path["/metrics"], answers.header = then
            watched.sample(1005)
    if then is None:
        watched.sample(1005)
    assert watched.events == expected
    watched.close()


def test_a_restart_while_the_collector_was_down_is_a_load_more(tmp_path: Path) -> None:
    answers = Answers({"/props": props(), "/metrics": metrics(5)})
    with sampled(tmp_path, answers) as server:
        server.sample(1000)
        answers.header = "2000000"
        server.restart_collector()
        server.sample(9000)
        server.sample(9005)
        assert server.events == ["loaded", "unloaded", "loaded"]
        assert server.query("SELECT loads FROM model_residency") == [(2,)]


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        pytest.param([("sleeping", 1), ("loading", 1), ("loaded", 1)], ["sleeping", "woke"], id="it wakes"),
        pytest.param(
            [("sleeping", 1), ("loaded", 1)], ["sleeping", "woke"], id="it wakes between two samples"
        ),
        pytest.param(
            [("sleeping", 1), ("loading", 2), ("loaded", 2)],
            ["sleeping", "unloaded", "loading", "loaded"],
            id="unloaded in its sleep and loaded again as another process",
        ),
        pytest.param([("loaded", 1), ("failed", 1)], ["loaded", "crashed"], id="killed after it served"),
        pytest.param([("sleeping", 1), ("failed", 1)], ["sleeping", "crashed"], id="killed in its sleep"),
        pytest.param([("loading", 1), ("failed", 1)], ["loading", "failed"], id="it failed to load"),
        pytest.param([("loaded", 1), ("unloaded", 1)], ["loaded", "unloaded"], id="unloaded by the user"),
    ],
)
def test_each_change_of_a_model_of_a_router_has_its_event(
    tmp_path: Path, samples: list[tuple[str, int]], expected: list[str]
) -> None:
    answers = Answers({"/props": ROUTER})
    with sampled(tmp_path, answers) as server:
        for number, (state, port) in enumerate(samples):
            answers.by_path["/models"] = listed(("a", state, port))
            server.sample(1000 + number)
        assert server.events == expected


@pytest.mark.parametrize(
    ("before", "after", "event"),
    [
        pytest.param(
            "loaded", [("a", "unloaded"), ("b", "loaded"), ("c", "loaded")], "evicted", id="evicted"
        ),
        pytest.param(
            "sleeping", [("a", "unloaded"), ("b", "loaded"), ("c", "loading")], "evicted", id="asleep"
        ),
        pytest.param(
            "loaded", [("a", "unloaded"), ("b", "loaded"), ("c", "unloaded")], "unloaded", id="by hand"
        ),
    ],
)
def test_a_model_is_evicted_only_if_another_one_was_loaded(
    tmp_path: Path, before: str, after: list[tuple[str, str]], event: str
) -> None:
    answers = Answers({"/props": ROUTER, "/models": listed(("a", before, 1), ("b", "loaded", 2))})
    with sampled(tmp_path, answers) as server:
        server.sample(1000)
        answers.by_path["/models"] = listed(*((name, state, 1 + "abc".index(name)) for name, state in after))
        server.sample(1005)
        assert server.query("SELECT event FROM model_events WHERE model = 'a' ORDER BY id")[-1] == (event,)


@pytest.mark.parametrize(
    ("used_at", "event"),
    [
        pytest.param({"a": 10.0, "b": 20.0}, "evicted", id="the one that was not used for the longest time"),
        pytest.param({"a": 20.0, "b": 10.0}, "unloaded", id="the one that was used last: by the user"),
        pytest.param({}, "evicted", id="nothing is known about their use"),
    ],
)
def test_a_model_that_the_router_would_not_have_chosen_was_unloaded_by_the_user(
    used_at: dict[str, float], event: str
) -> None:
    """In one interval the user unloads `a`, and a request loads `c`."""
    events = ModelEvents("server", ModelIndex(None), ServerRuns(lambda *_: []))
    a, b, c = (ServedModel(name, f"/models/{name}.gguf", "loaded") for name in "abc")
    events.compare((a, b), 2)
    changes = events.compare((replace(a, state="unloaded"), b, c), 2, Observed(used_at=used_at))
    assert [change.event for change in changes] == [event, "loaded"]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        pytest.param(108_400_000, 8.4, id="ready 8.4 s after its start"),
        pytest.param(101_150_000, 1.15, id="ready 1.15 s after its start"),
        pytest.param(99_000_000, None, id="ready before its start: another machine's clock"),
        pytest.param(900_000_000, None, id="ready after now"),
        pytest.param(None, None, id="a build without the header"),
    ],
)
def test_the_duration_of_a_load_is_that_from_the_start_to_readiness(
    header: int | None, expected: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "clock_gettime", lambda _clock: time.monotonic())  # never suspended
    model = parse_props(props()).model
    assert model
    served = ServingProcess(model, "", process(), Metrics({}, None if header is None else str(header)))
    assert served.load_seconds() == (None if expected is None else pytest.approx(expected, abs=0.01))


def test_a_real_server_that_is_killed_and_started_again_was_loaded_twice_in_a_known_time(
    tmp_path: Path, tiny_model: Path
) -> None:
    port = free_port()
    processes = LlamaProcessSource(process_name(port), f"http://127.0.0.1:{port}")
    watched = Sampled(tmp_path / "x.db", f"http://127.0.0.1:{port}", processes=processes)
    for timestamp in (1000, 1060):
        began = time.monotonic()
        with LlamaServer(tiny_model, port=port):
            assert watched.sample(timestamp)["uptime"] is not None
            longest = time.monotonic() - began
    assert watched.events == ["loaded", "unloaded", "loaded"]
    loads = [seconds for (seconds,) in watched.query("SELECT load_seconds FROM model_loads")]
    assert len(loads) == 2
    assert 0.01 < loads[1] < longest + 0.01
    watched.close()
