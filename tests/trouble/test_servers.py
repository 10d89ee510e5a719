"""Real trouble with llama-servers: which process is meant, what it did, and what it says.

Each table lists situations with the right value; an id names the situation and, where there is one, the report.
"""

import gzip
import json
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from collector.catalog import open_database
from collector.database import Database
from collector.database.buffer import Buffer, Retention
from collector.database.writer import Writer
from collector.errors import InvalidAnswer, ParseError, SettingsError
from collector.parsers.exposition import parse_exposition
from collector.parsers.server_answers import parse_props
from collector.settings import LlamaServerSettings, read_api_key
from collector.sources.base import Reading, Tick
from collector.sources.llama.endpoint import Metrics, ServingProcess
from collector.sources.llama.http import Address, LlamaHttp, listening_address
from collector.sources.llama.local.addresses import is_local, process_at
from collector.sources.llama.local.process import LlamaProcess
from collector.sources.llama.model_rows import MAX_ROWS
from collector.sources.llama.processes import LlamaProcessSource
from collector.sources.llama.router import Router
from collector.sources.llama.runs import ServerRuns
from collector.sources.llama.server import LlamaServerSource
from collector.sources.registry import build_llama_server
from tests.support.llama_server import LlamaServer
from tests.support.odd_server import OddServer, answer

MODEL = "/models/chat.gguf"
ROUTER = json.dumps({"role": "router", "build_info": "b11434-abcdef0", "max_instances": 2})


def process(*arguments: str, pid: int = 7, started: float = 100.0) -> LlamaProcess:
    command = ("llama-server", *arguments)
    return LlamaProcess(
        pid, 5000.0, 1.0, 0.0, 1000, command,
        uptime_seconds=50.0, started_boot_seconds=started, boot_id="boot-1",
    )  # fmt: skip


def props(**more: object) -> str:
    known = {"model_path": MODEL, "build_info": "b11434-abcdef0", "is_sleeping": False, "total_slots": 1}
    return json.dumps({**known, **more})


def metrics(tokens: int, working: int = 0) -> str:
    counted = f"llamacpp:tokens_predicted_total {tokens}\nllamacpp:n_decode_total {tokens}\n"
    return f"{counted}llamacpp:requests_processing {working}\n"


class VisibleProcesses(LlamaProcessSource):
    """The source of processes, which finds those that a test names."""

    def __init__(self, url: str) -> None:
        super().__init__("no-such-process", url)
        self.visible: tuple[LlamaProcess, ...] = ()

    def read(self, _tick: Tick) -> Reading[tuple[LlamaProcess, ...]]:
        return Reading(self.visible, snapshot=self._snapshot(self.visible))


@dataclass
class Answers:
    """What a server answers: a text with status 200, or a status; by path."""

    by_path: dict[str, str | int] = field(default_factory=dict)
    header: str = "1000000"

    def script(self, path: str) -> Iterator[bytes]:
        found = self.by_path.get(path, 404)
        if isinstance(found, int):
            yield answer(found, "{}")
        else:
            yield answer(200, found, f"Process-Start-Time-Unix: {self.header}")


class Sampled:
    """One server and its samples, in a real database with all views.

    Args:
        path: the database.
        url: the server.
    """

    def __init__(self, path: Path, url: str, api_key: str | None = None) -> None:
        self.database: Database = open_database(path)
        self.processes = VisibleProcesses(url)
        self._address = Address(url, api_key, 1.0)
        self.source = self._build()

    def _build(self) -> LlamaServerSource:
        runs = ServerRuns(self.database.query)
        return build_llama_server(self._address, self.processes, None, self.database, runs)

    def restart_collector(self, url: str | None = None) -> None:
        self.source.close()
        self._address = replace(self._address, url=url or self._address.url)
        self.source = self._build()

    def sample(self, timestamp: int = 1000) -> dict[str, Any]:
        """Store one sample, and return its columns of `metrics` and the state of the server."""
        tick, buffer = Tick(timestamp), Buffer()
        columns = {**self.processes.defaults, **tick.read(self.processes).snapshot}
        reading = tick.read(self.source)
        buffer.add(reading.changes, Retention.KEPT)
        buffer.add([table.insert(row) for table, row in reading.rows], Retention.DROPPABLE)
        Writer(self.database, buffer).flush()
        return {**columns, **reading.snapshot, "state": reading.state.name}

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        return [tuple(row.values()) for row in self.database.query(statement)]

    @property
    def events(self) -> list[str]:
        return [event for (event,) in self.query("SELECT event FROM model_events ORDER BY id")]

    @property
    def tokens(self) -> float:
        return float(self.query("SELECT sum(generated_tokens) FROM token_steps")[0][0])

    def close(self) -> None:
        self.source.close()
        self.database.close()


@contextmanager
def sampled(tmp_path: Path, answers: Answers, **more: str) -> Iterator[Sampled]:
    with OddServer(answers.script) as server:
        watched = Sampled(tmp_path / "x.db", server.url, **more)
        try:
            yield watched
        finally:
            watched.close()


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
        server.processes.visible = (process("--port", str(urlsplit(server.source._url).port)),)
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
        pytest.param(False, (process("--port", "1"),), NONE_RUNS, id="down beside a server on another port"),
    ],
)
def test_usage_is_unknown_where_a_server_answers_whose_process_is_not_visible(
    tmp_path: Path, *, answers: bool, visible: tuple[LlamaProcess, ...], expected: Mapping[str, object]
) -> None:
    with sampled(tmp_path, Answers({"/props": props(), "/metrics": metrics(1)})) as server:
        if not answers:
            server.processes._url = "http://127.0.0.1:2"
            server.restart_collector("http://127.0.0.1:2")
        server.processes.visible = visible
        columns = server.sample()
        assert {name: columns[name] for name in expected} == expected


def test_usage_is_unknown_while_a_server_is_busy_or_cannot_be_reached(tmp_path: Path) -> None:
    watched = Sampled(tmp_path / "x.db", "http://no-such-host.invalid:8080")
    watched.processes.visible = (process("--port", "8080"),)
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


def listed(*models: tuple[str, str, int]) -> str:
    """Return /models of a router; of each model its name, its state and the port of its child."""
    data = [
        {
            "id": name,
            "status": {
                "value": "unloaded" if state == "failed" else state,
                "failed": state == "failed",
                "args": ["llama-server", "--port", str(port), "--model", f"/models/{name}.gguf"],
            },
        }
        for name, state, port in models
    ]
    return json.dumps({"data": data})


A, B, C = ("a", 1), ("b", 2), ("c", 3)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        pytest.param([("sleeping", 1), ("loading", 1), ("loaded", 1)], ["sleeping", "woke"], id="it wakes"),
        pytest.param([("sleeping", 1), ("loaded", 1)], ["sleeping", "woke"], id="it wakes between two samples"),
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
        pytest.param("loaded", [("a", "unloaded"), ("b", "loaded"), ("c", "loaded")], "evicted", id="evicted"),
        pytest.param("sleeping", [("a", "unloaded"), ("b", "loaded"), ("c", "loading")], "evicted", id="asleep"),
        pytest.param("loaded", [("a", "unloaded"), ("b", "loaded"), ("c", "unloaded")], "unloaded", id="by hand"),
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
