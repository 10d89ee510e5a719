"""States and rows of the llama-server source, from recorded and from invalid answers.

tests/daemon/test_daemon.py tests it with a real llama-server.
"""

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trustme

from collector.catalog import OWN_TABLES
from collector.database import Database
from collector.sources.base import Reading, Tick
from collector.sources.llama.http import MAX_ANSWER_BYTES, listening_address
from collector.sources.llama.local.process import LlamaProcess
from collector.sources.llama.metrics import LLAMA_METRICS
from collector.sources.llama.run_table import Run
from collector.sources.llama.server import LlamaServerSource
from tests.support.llama_source import llama_source
from tests.support.odd_server import OddServer, Script, answer
from tests.support.paths import RECORDINGS

HTTP = RECORDINGS / "http"
PROPS = (HTTP / "single-props.json").read_text().replace("b0-unknown", "b11434-abcdef0")
METRICS = (HTTP / "single-metrics-busy.prom").read_text()


SourceAt = Callable[..., LlamaServerSource]


@pytest.fixture
def source_at(tmp_path: Path) -> Iterator[SourceAt]:
    """Return a function that creates a source for a URL, with a database that contains one model."""
    made: list[LlamaServerSource] = []

    def make(url: str, timeout: float = 0.3) -> LlamaServerSource:
        made.append(llama_source(url, timeout, database))
        return made[-1]

    with Database(tmp_path / "source.db", OWN_TABLES) as database:
        database.models.save({"id": "model_1_x", "name": "gemma"})
        yield make
        for source in made:
            source.close()


def served(props: bytes, *metrics: bytes) -> Script:
    """Return a script with one answer for /props, and a list of answers for /metrics."""
    answers = iter(metrics)

    def script(path: str) -> Iterator[bytes]:
        yield props if path == "/props" else next(answers)

    return script


def recorded(name: str, status: int) -> bytes:
    return answer(status, (HTTP / name).read_bytes())


def read(source: LlamaServerSource) -> Reading[None]:
    return source.read(Tick(1000))


def rows(reading: Reading[None]) -> list[Sequence[Any]]:
    """Return the rows of `llama_metrics`: the first one of a run is among the changes, which are never dropped."""
    first = [w.rows[0] for w in reading.changes if w.statement == LLAMA_METRICS.insert_statement]
    return [*first, *(values for _, values in reading.rows)]


def row(reading: Reading[None]) -> dict[str, Any]:
    assert len(rows(reading)) == 1, reading.state
    (values,) = rows(reading)
    return dict(zip(LLAMA_METRICS.written_columns, values, strict=True))


def test_the_answers_of_a_single_server_become_a_row(source_at: SourceAt) -> None:
    with OddServer(served(answer(200, PROPS), answer(200, METRICS))) as server:
        reading = read(source_at(server.url))
    values = row(reading)
    assert reading.state.name == "up"
    assert reading.snapshot == {"active_models": 1}
    assert (values["model"], values["model_id"], values["timestamp"]) == ("gemma", "model_1_x", 1000)
    assert (values["tokens_predicted_total"], values["n_decode_total"]) == (64, 96)
    assert (values["requests_processing"], values["requests_deferred"]) == (2, 3)
    assert values["extra"] is None
    assert values["kv_cache_usage_ratio"] is None
    assert values["predicted_tokens_per_second"] is None


def test_values_without_a_column_are_stored_as_json(source_at: SourceAt) -> None:
    text = METRICS + 'llamacpp:brand_new_total 5\nllamacpp:per_pos{position="0"} nan\n'
    with OddServer(served(answer(200, PROPS), answer(200, text))) as server:
        extra = row(read(source_at(server.url)))["extra"]
    assert json.loads(extra) == {"brand_new_total": 5, 'per_pos{position="0"}': None}


def test_a_value_that_an_older_build_does_not_report_is_null(source_at: SourceAt) -> None:
    with OddServer(served(answer(200, PROPS), answer(200, "llamacpp:requests_processing 0\n"))) as server:
        values = row(read(source_at(server.url)))
    assert values["requests_processing"] == 0
    assert values["tokens_predicted_total"] is None


@pytest.mark.parametrize(
    ("script", "state", "active"),
    [
        (served(recorded("loading-metrics.json", 503)), "loading", 0),
        (served(recorded("apikey-missing-props.json", 401)), "needs key", None),
        (served(answer(403, "{}")), "needs key", None),
        (served(answer(404, "{}")), "not found", None),
        (served(answer(200, PROPS), answer(501, "{}")), "metrics off", 1),
        (served(answer(200, PROPS), answer(404, "{}")), "metrics off", 1),
        (served(answer(200, PROPS), recorded("loading-metrics.json", 503)), "loading", 0),
        (served(answer(200, PROPS), recorded("apikey-missing-metrics.json", 401)), "needs key", None),
        (served(recorded("router-props.json", 200), recorded("apikey-missing-models.json", 401)), "needs key", None),
        (served(answer(500, "oops")), "wrong answer", None),
        (served(answer(301, "", "Location: http://127.0.0.1:1/")), "wrong answer", None),
        (served(answer(200, "<html>hello</html>")), "wrong answer", None),
        (served(answer(200, PROPS[:50])), "wrong answer", None),
        (served(answer(200, "[1]")), "wrong answer", None),
        (served(answer(200, "[" * 100_000)), "wrong answer", None),
        (served(answer(200, PROPS), answer(200, "<html>")), "wrong answer", None),
        (served(answer(200, PROPS), answer(200, b"\xff\xfe\x00" * 100)), "wrong answer", None),
        (served(b"SSH-2.0-OpenSSH_9.2\r\n"), "wrong answer", None),
        (served(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"), "wrong answer", None),
    ],
)  # fmt: skip
def test_every_invalid_answer_has_its_state_and_no_row(
    source_at: SourceAt, script: Script, state: str, active: int | None
) -> None:
    def repeated(path: str) -> Iterator[bytes | float]:
        yield from script(path)

    with OddServer(repeated) as server:
        reading = read(source_at(server.url))
    assert reading.state.name == state
    assert reading.rows == ()
    assert reading.snapshot == {"active_models": active}
    assert reading.state.message


def test_metrics_are_never_requested_from_a_router(source_at: SourceAt) -> None:
    def router(path: str) -> Iterator[bytes]:
        yield recorded("router-props.json" if path == "/props" else "router-models-loaded.json", 200)

    with OddServer(router) as server:
        source = source_at(server.url)
        readings = [read(source) for _ in range(3)]
        assert server.paths == ["/props", "/models", "/models", "/models"]
    assert [reading.snapshot for reading in readings] == [{"active_models": 1}] * 3
    assert [reading.state.name for reading in readings] == ["up"] * 3


def test_a_port_without_a_listener_is_down(source_at: SourceAt) -> None:
    reading = read(source_at("http://127.0.0.1:1"))
    no_server = {"active_models": 0, "cpu_usage": 0.0, "memory_usage": 0.0, "uptime": 0.0}
    assert (reading.state.name, reading.snapshot) == ("down", no_server)


def test_a_host_name_that_does_not_exist_is_unreachable_and_its_models_are_not_known(
    source_at: SourceAt,
) -> None:
    reading = read(source_at("http://no-such-host.invalid"))
    assert (reading.state.name, reading.snapshot) == ("unreachable", {"active_models": None})


@pytest.mark.parametrize("reached_before", [False, True])
def test_only_a_server_whose_machine_refused_a_connection_before_counts_in_full(
    source_at: SourceAt, monkeypatch: pytest.MonkeyPatch, *, reached_before: bool
) -> None:
    """While its name cannot be resolved, a server of another machine may have generated tokens for weeks."""
    resolve = socket.getaddrinfo
    port = 1 if reached_before else None  # nothing listens on port 1

    def resolve_if_reached(host: str, *arguments: Any, **options: Any) -> Any:
        if host != "server.invalid":
            return resolve(host, *arguments, **options)
        if port is None:
            raise socket.gaierror(socket.EAI_AGAIN, "no network")
        return resolve("127.0.0.1", port, *arguments[1:], **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve_if_reached)
    source = source_at("http://server.invalid:8080")
    assert read(source).state.name == ("down" if reached_before else "unreachable")
    with OddServer(served(answer(200, PROPS), answer(200, METRICS))) as server:
        port = urlsplit(server.url).port
        assert row(read(source))["counted_from_zero"] == int(reached_before)


def test_a_server_that_does_not_answer_is_busy(source_at: SourceAt) -> None:
    released = threading.Event()

    def silent(_path: str) -> Iterator[bytes]:
        released.wait(10)
        yield b""

    with OddServer(silent) as server:
        reading = read(source_at(server.url))
        released.set()
    assert (reading.state.name, reading.snapshot) == ("busy", {"active_models": None})


def test_an_answer_that_arrives_byte_by_byte_ends_after_twice_the_timeout(source_at: SourceAt) -> None:
    released = threading.Event()

    def dripping(_path: str) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
        while not released.wait(0.05):
            yield b"x"

    with OddServer(dripping) as server:
        started = time.monotonic()
        assert read(source_at(server.url)).state.name == "busy"
        assert time.monotonic() - started < 30
        released.set()


def test_an_endless_answer_is_cut_off(source_at: SourceAt) -> None:
    def endless(_path: str) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\n\r\n"
        for _ in range(10 * MAX_ANSWER_BYTES // 65536):
            yield b"x" * 65536

    with OddServer(endless) as server:
        reading = read(source_at(server.url, timeout=5))
    assert reading.state.name == "wrong answer"
    assert "longer than" in reading.state.message


def test_a_request_is_sent_once_more_if_the_server_closed_the_connection(source_at: SourceAt) -> None:
    calls = 0

    def closing_first(path: str) -> Iterator[bytes]:
        nonlocal calls
        calls += 1
        if calls != 1:
            yield answer(200, PROPS if path == "/props" else METRICS)

    with OddServer(closing_first) as server:
        assert read(source_at(server.url)).state.name == "up"
        assert server.paths[:2] == ["/props", "/props"]


def test_a_long_name_from_outside_is_cut(source_at: SourceAt) -> None:
    props = json.dumps({"model_path": "/m.gguf", "model_alias": "n" * 1_000_000})
    with OddServer(served(answer(200, props), answer(200, METRICS))) as server:
        assert len(row(read(source_at(server.url)))["model"]) == 500


def test_a_new_process_with_another_model_is_detected_by_the_header_of_metrics(source_at: SourceAt) -> None:
    runs = iter(["1", "1", "2", "2"])
    models = iter(["/a.gguf", "/b.gguf"])

    def script(path: str) -> Iterator[bytes]:
        if path == "/props":
            yield answer(200, json.dumps({"model_path": next(models)}))
        else:
            yield answer(200, METRICS, f"Process-Start-Time-Unix: {next(runs)}")

    with OddServer(script) as server:
        source = source_at(server.url)
        assert [row(read(source))["model"] for _ in range(4)] == ["a", "a", "b", "b"]


def test_the_first_metrics_of_a_run_have_a_speed_even_if_the_run_has_earlier_samples(tmp_path: Path) -> None:
    """/metrics of old builds is read only while the model is active, so that the run begins before."""
    script = served(answer(200, PROPS), answer(501, "{}"), answer(200, METRICS))
    with Database(tmp_path / "x.db", OWN_TABLES) as database, OddServer(script) as server:
        earlier = Run(7, listening_address(server.url), None, "gemma", None, outcome="unloaded").save()
        with database.transaction() as connection:
            connection.executemany(earlier.statement, earlier.rows)
        source = llama_source(server.url, 0.3, database)
        assert read(source).rows == ()
        values = row(read(source))
        source.close()
    assert (values["run_id"], values["counted_from_zero"]) == (8, 1)
    assert values["predicted_tokens_per_second"] == pytest.approx(
        63 / values["tokens_predicted_seconds_total"]
    )


def test_the_message_about_an_untrusted_certificate_names_the_variable_that_fixes_it(
    source_at: SourceAt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with OddServer(
        lambda path: iter([answer(200, PROPS if path == "/props" else METRICS)]), context
    ) as server:
        refused = read(source_at(server.url, timeout=2))
        assert refused.state.name == "wrong answer"
        assert "SSL_CERT_FILE" in refused.state.message
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
        assert read(source_at(server.url, timeout=2)).state.name == "up"


@pytest.mark.parametrize("first_answer", [None, answer(503, "{}")], ids=["down", "loading"])
def test_a_server_that_starts_again_is_read_once_also_where_its_metrics_are_read_seldom(
    source_at: SourceAt, monkeypatch: pytest.MonkeyPatch, first_answer: bytes | None
) -> None:
    """Its build is not known, so that reading could keep its model awake; its process never works again."""
    seen = LlamaProcess(7, 0.0, None, 5.0, 0, ())
    monkeypatch.setattr("collector.sources.llama.single.process_at", lambda *_: seen)
    props = answer(200, json.dumps({"model_path": "/a.gguf", "is_sleeping": False}))
    first = [True]

    def script(path: str) -> Iterator[bytes]:
        if first_answer and first:
            first.clear()
            yield first_answer
        yield props if path == "/props" else answer(200, METRICS)

    with OddServer(script) as server:
        source = source_at(server.url)
        if first_answer is None:
            source._single.record_down()
        else:
            assert read(source).state.name == "loading"
        assert [len(rows(read(source))) for _ in range(4)] == [1, 1, 0, 0]
