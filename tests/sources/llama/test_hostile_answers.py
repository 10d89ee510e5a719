"""Any program that answers on the port of llama-server: the right state, bounded time and memory, no wrong value.

The default suite tests each hostile answer in one request; `-m slow` in every request, a valid answer that is cut
at every byte, and 1,000 restarts. Tests with a whole daemon are in tests/faults/test_hostile_server.py.
"""

import gc
import json
import math
import socket
import ssl
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import structlog
import trustme

from collector.catalog import OWN_TABLES
from collector.database import Database
from collector.database.buffer import Buffer, Retention
from collector.database.writer import Writer
from collector.health import Health, observe
from collector.sources.base import Reading, Tick
from collector.sources.llama.metrics import LLAMA_METRICS
from collector.sources.llama.router import MAX_CHILDREN
from collector.sources.llama.server import LlamaServerSource
from tests.support.hostile_answers import EVERYTHING, SLOW, Hostile, Pieces, router_models
from tests.support.llama_source import llama_source
from tests.support.odd_server import OddServer, Script, answer
from tests.support.paths import RECORDINGS
from tests.support.restarting_server import RestartingServer

HTTP = RECORDINGS / "http"
PROPS = (HTTP / "single-props.json").read_text().replace("b0-unknown", "b11434-abcdef0")
METRICS = (HTTP / "single-metrics-busy.prom").read_text()
ROUTER = (HTTP / "router-props.json").read_text()

SHORT_SECONDS = 0.3
"""Time-out of tests that wait for it."""

SOME_SLOW = {"silence", "dripping headers", "dripping chunks"}
"""Each of these lasts until a time-out: not all of them are tested in every request."""

LONG_SECONDS = 10.0
"""Time-out of tests that must not reach it, even on a busy machine."""

HANG_SECONDS = 10
"""A bounded reading ends much earlier than this, an unbounded one much later, even on a busy machine."""

MEMORY_BYTES = 150 * 2**20
"""The systemd unit allows 256 MB; a million empty lists in 3 MB of JSON need 70 MB."""

MESSAGE_CHARACTERS = 600

Pick = Callable[[str], Pieces]


def make_source(url: str, timeout: float = SHORT_SECONDS) -> LlamaServerSource:
    return llama_source(url, timeout, api_key="s3cr3t")


SourceAt = Callable[..., LlamaServerSource]


@pytest.fixture
def source_at() -> Iterator[SourceAt]:
    """Return a function that creates a source for a URL; all sources are closed at the end."""
    with ExitStack() as made:

        def make(url: str, timeout: float = SHORT_SECONDS) -> LlamaServerSource:
            source = make_source(url, timeout)
            made.callback(source.close)
            return source

        yield make


def read(source: LlamaServerSource) -> Reading[None]:
    """Read the source; check that it takes bounded time, and that its message is short and printable."""
    started = time.monotonic()
    reading = source.read(Tick(1000))
    if source._http._timeout == SHORT_SECONDS:
        assert time.monotonic() - started < HANG_SECONDS
    assert len(reading.state.message) <= MESSAGE_CHARACTERS
    assert reading.state.message.isprintable()
    assert "s3cr3t" not in reading.state.message
    return reading


def rows(reading: Reading[None]) -> list[Sequence[Any]]:
    """Return the rows of `llama_metrics`: the first one of a run is among the changes, which are never dropped."""
    first = [w.rows[0] for w in reading.changes if w.statement == LLAMA_METRICS.insert_statement]
    return [*first, *(values for _, values in reading.rows)]


def values(reading: Reading[None]) -> dict[str, Any]:
    assert len(rows(reading)) == 1, reading.state
    (row,) = rows(reading)
    return dict(zip(LLAMA_METRICS.written_columns, row, strict=True))


def good(path: str) -> Pieces:
    yield answer(200, PROPS if path.endswith("/props") else METRICS)


class HostileServer:
    """A server that sends a hostile answer to one path until `behave` is called."""

    def __init__(self, hostile: Hostile, stack: ExitStack) -> None:
        self._hostile: Hostile | None = hostile
        self._stack = stack
        self.url = ""

    def behave(self) -> None:
        self._hostile = None

    def serve(self, script: Script) -> OddServer:
        return self._stack.enter_context(OddServer(script))

    def pieces(self, path: str, odd_path: str, otherwise: Pick = good) -> Pieces:
        if self._hostile and path == odd_path:
            return self._hostile.pieces()
        return otherwise(path)


def in_props(server: HostileServer) -> None:
    server.url = server.serve(lambda path: server.pieces(path, "/props")).url


def in_metrics(server: HostileServer) -> None:
    server.url = server.serve(lambda path: server.pieces(path, "/metrics")).url


def in_models(server: HostileServer) -> None:
    child = server.serve(good)
    server.url = server.serve(lambda path: server.pieces(path, "/models", router_of(child))).url


def in_props_of_a_model(server: HostileServer) -> None:
    child = server.serve(lambda path: server.pieces(path, "/props"))
    server.url = server.serve(router_of(child)).url


def in_metrics_of_a_model(server: HostileServer) -> None:
    child = server.serve(lambda path: server.pieces(path, "/metrics"))
    server.url = server.serve(router_of(child)).url


def router_of(child: OddServer) -> Pick:
    """Return the script of a router with one loaded model."""
    model = (
        "gemma",
        "loaded",
        ["--model", "/srv/models/gemma-3-270m-q4_k_m.gguf", "--port", child.url.split(":")[2]],
    )

    def script(path: str) -> Pieces:
        yield answer(200, ROUTER if path == "/props" else router_models(model))

    return script


@contextmanager
def hostile_server(setup: Callable[[HostileServer], None], name: str) -> Iterator[HostileServer]:
    with ExitStack() as stack:
        server = HostileServer(EVERYTHING[name], stack)
        setup(server)
        yield server


def combinations(*setups: Callable[[HostileServer], None]) -> list[Any]:
    """Return all combinations of answer and request; those that are not `is_quick` are marked as slow."""
    return [
        pytest.param(setup, name, marks=() if is_quick(setup, name) else pytest.mark.slow)
        for setup in setups
        for name in EVERYTHING
        if name not in SLOW.keys() - SOME_SLOW or setup in (in_props, in_metrics)
    ]


def is_quick(setup: Callable[[HostileServer], None], name: str) -> bool:
    if setup is in_props:
        return name not in SLOW or name in SOME_SLOW
    return name in ("HTML", "1 GB") or (setup is in_metrics and ("metric" in name or "label" in name))


@pytest.mark.parametrize(("setup", "name"), combinations(in_props, in_metrics, in_models))
def test_every_hostile_answer_has_its_state_and_the_next_valid_one_is_read(
    source_at: SourceAt, setup: Callable[[HostileServer], None], name: str
) -> None:
    with hostile_server(setup, name) as server:
        source = source_at(server.url, SHORT_SECONDS if name in SLOW else LONG_SECONDS)
        reading = read(source)
        assert reading.state.name in EVERYTHING[name].states, reading.state
        assert (reading.rows, reading.snapshot, list(reading.changes)) == ((), {"active_models": None}, [])
        assert reading.state.message
        server.behave()
        after = read(source)
        assert (after.state.name, after.snapshot) == ("up", {"active_models": 1})
        assert values(after)["tokens_predicted_total"] == 64


@pytest.mark.parametrize(("setup", "name"), combinations(in_props_of_a_model, in_metrics_of_a_model))
def test_a_child_that_sends_hostile_answers_has_no_row_and_its_router_stays_up(
    source_at: SourceAt, setup: Callable[[HostileServer], None], name: str
) -> None:
    with hostile_server(setup, name) as server:
        source = source_at(server.url, SHORT_SECONDS if name in SLOW else LONG_SECONDS)
        reading = read(source)
        assert (reading.state.name, reading.rows, reading.snapshot) == ("up", (), {"active_models": 1})
        server.behave()
        assert values(read(source))["tokens_predicted_total"] == 64


@pytest.mark.slow
@pytest.mark.parametrize("setup", [in_props, in_metrics, in_models])
def test_no_answer_needs_much_memory(source_at: SourceAt, setup: Callable[[HostileServer], None]) -> None:
    peaks = {}
    tracemalloc.start()
    try:
        for name in EVERYTHING.keys() - SLOW.keys():
            with hostile_server(setup, name) as server:
                tracemalloc.reset_peak()
                read(source_at(server.url, timeout=5))
                peaks[name] = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert max(peaks.values()) < MEMORY_BYTES, peaks


@pytest.mark.parametrize(
    "text",
    ["nan", "-nan", "NaN", "inf", "-Infinity", "1e309", "-1e309", "1e-400", "-1", "-0", "1e308", "5e-324",
     "9" * 5000, "0." + "0" * 100_000 + "1"],
)  # fmt: skip
def test_every_number_is_stored_finite_or_as_unknown(source_at: SourceAt, tmp_path: Path, text: str) -> None:
    lines = METRICS.splitlines()
    before = "\n".join(line.rpartition(" ")[0] + " 0" if line[0] != "#" else line for line in lines) + "\n"
    after = (
        "\n".join(line.rpartition(" ")[0] + f" {text}" if line[0] != "#" else line for line in lines) + "\n"
    )
    answers = iter([before, after, before, METRICS])
    with OddServer(lambda path: iter([answer(200, PROPS if path == "/props" else next(answers))])) as server:
        source = source_at(server.url)
        readings = [read(source) for _ in range(4)]
    stored = write(tmp_path, readings)
    assert len(stored) == 4
    for row in stored:
        assert all(
            value is None or isinstance(value, str | int) or math.isfinite(value) for value in row.values()
        )
    expected = float(text) if 0 <= float(text) < 2.0**63 else None  # n_decode_total is a counter
    assert stored[1]["n_decode_total"] == expected
    assert stored[3]["n_decode_total"] == 96


def test_a_speed_beyond_the_range_of_numbers_is_unknown(source_at: SourceAt, tmp_path: Path) -> None:
    counters = "llamacpp:tokens_predicted_total {}\nllamacpp:tokens_predicted_seconds_total {}\n"
    answers = iter(
        [counters.format(0, 0), counters.format("1e308", "1e-300"), counters.format("-1e308", "1e308")]
    )
    with OddServer(lambda path: iter([answer(200, PROPS if path == "/props" else next(answers))])) as server:
        source = source_at(server.url)
        stored = write(tmp_path, [read(source) for _ in range(3)])
    assert [row["predicted_tokens_per_second"] for row in stored] == [None, None, None]


def write(directory: Path, readings: list[Reading[None]]) -> list[dict[str, Any]]:
    """Commit all rows, and return those of `llama_metrics`; a row that cannot be stored fails the test."""
    with Database(directory / "hostile.db", OWN_TABLES) as database:
        buffer = Buffer()
        for reading in readings:
            buffer.add([table.insert(row) for table, row in reading.rows], Retention.DROPPABLE)
            buffer.add(reading.changes, Retention.KEPT)
        with structlog.testing.capture_logs() as logged:
            Writer(database, buffer).flush()
        assert logged == []
        return database.query("SELECT * FROM llama_metrics ORDER BY id", ())


def test_labels_of_any_kind_stay_in_one_row_of_plain_json(source_at: SourceAt, tmp_path: Path) -> None:
    names = [
        'a{b="c"}',
        'a{b="',
        "a{}}}{",
        'a{b="\\"; DROP TABLE logs; --"}',
        "a\x00b",
        "a\x1b[2J",
        "ä\u202eö",
        "a  b",
    ]
    text = METRICS + "".join(f"llamacpp:{name} 1\n" for name in names) + "llamacpp:a 1\nllamacpp:a 2\n"
    with OddServer(lambda path: iter([answer(200, PROPS if path == "/props" else text)])) as server:
        (stored,) = write(tmp_path, [read(source_at(server.url))])
    assert json.loads(stored["extra"]) == dict.fromkeys(names, 1.0) | {"a": 2.0}


@pytest.mark.parametrize(
    "props",
    [
        '{"model_path": "/m/\\u0000.gguf", "model_alias": "\\u0000"}',
        '{"model_path": "/m/\\ud800.gguf", "model_alias": "\\udfff"}',
        '{"model_path": "/m/a.gguf", "model_path": 5, "model_alias": ["x"], "model_alias": {}}',
        '{"model_path": "/' + "m" * 1_000_000 + '", "model_alias": "' + "n" * 1_000_000 + '"}',
        '{"model_path": "\\u001b[2J", "build_info": "b99999999999999999"}',
        '{"default_generation_settings": {"n_ctx": 1e309}, "total_slots": NaN, "endpoint_metrics": -1}',
        '{"default_generation_settings": {"n_ctx": 99999999999999999999999}, "max_instances": -1}',
    ],
)  # fmt: skip
def test_invalid_values_of_props_are_stored_as_unknown(
    source_at: SourceAt, tmp_path: Path, props: str
) -> None:
    with OddServer(lambda path: iter([answer(200, props if path == "/props" else METRICS)])) as server:
        (stored,) = write(tmp_path, [read(source_at(server.url))])
    assert stored["tokens_predicted_total"] == 64
    assert 0 < len(stored["model"]) <= 500
    assert (tmp_path / "hostile.db").stat().st_size < 300_000


@pytest.mark.parametrize(
    "arguments",
    [
        ["--port", "99999"],
        ["--port", "-1"],
        ["--port", "9" * 10_000],
        ["--port", "٣٣٣٣"],
        ["--port=1", "--port=2"],
        ["--port"],
        ["--port", "80", "--api-prefix", "/" + "x" * 200_000],
        ["--port", "80", "--api-prefix", "/\r\nX: y\r\n"],
        ["--port", "80", "--api-prefix", "[::1"],
        ["--port", "80", "--api-prefix", "/ä ö?x#y"],
        ["--model", "/m/\0", "--port", "1"],
        ["--model", "/m/" + "x" * 100_000],
        ["x"] * 100_000,
    ],
)
def test_no_command_line_of_a_child_leads_to_another_host_or_takes_much_space(
    source_at: SourceAt, tmp_path: Path, arguments: list[str]
) -> None:
    models = router_models(
        ("odd", "loaded", arguments), ("n" * 100_000, "loaded", []), ("plain", "unloaded", [])
    )
    with OddServer(lambda path: iter([answer(200, ROUTER if path == "/props" else models)])) as server:
        reading = read(source_at(server.url))
    assert (reading.state.name, reading.snapshot, reading.rows) == ("up", {"active_models": 2}, ())
    assert write(tmp_path, [reading]) == []


@pytest.mark.parametrize("form", ["@127.0.0.1:{}/", "@127.0.0.1:{}", "x@127.0.0.1:{}/"])
def test_a_prefix_cannot_name_another_port_or_host(source_at: SourceAt, form: str) -> None:
    """The API key would be sent to it."""
    with OddServer(good) as victim, OddServer(good) as child:
        port = child.url.split(":")[2]
        prefix = form.format(victim.url.split(":")[2])
        models = router_models(
            ("m", "loaded", ["--port", port, "--api-prefix", prefix, "--model", "/m.gguf"])
        )
        with OddServer(lambda path: iter([answer(200, ROUTER if path == "/props" else models)])) as server:
            assert read(source_at(server.url)).rows == ()
        assert victim.paths == []
        assert len(child.paths) == 1


def test_children_that_hang_do_not_delay_the_reading_of_others(source_at: SourceAt) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=200) as silent, OddServer(good) as child:
        hanging = [(f"h{number}", "loaded", ["--port", str(silent.getsockname()[1])]) for number in range(12)]
        path = "/srv/models/gemma-3-270m-q4_k_m.gguf"
        well = ("z", "loaded", ["--port", child.url.split(":")[2], "--model", path])
        models = router_models(*hanging, well)
        with OddServer(lambda path: iter([answer(200, ROUTER if path == "/props" else models)])) as server:
            source = source_at(server.url, timeout=0.05)
            samples = 1
            while not read(source).rows:
                samples += 1
                assert samples < 60
            assert samples > 2
            assert [len(read(source).rows) for _ in range(5)] == [1] * 5


def test_the_number_of_connections_to_the_children_of_a_router_is_bounded(
    source_at: SourceAt,
) -> None:
    with OddServer(good) as child:
        port = child.url.split(":")[2]
        models = router_models(
            *(
                (f"m{number}", "loaded", ["--port", port, "--api-prefix", f"/m{number}"])
                for number in range(1000)
            )
        )
        with OddServer(lambda path: iter([answer(200, ROUTER if path == "/props" else models)])) as server:
            reading = read(source_at(server.url, timeout=4))
        assert reading.snapshot == {"active_models": 1000}
        assert len(set(child.paths)) == MAX_CHILDREN


def test_a_port_whose_queue_is_full_is_busy(source_at: SourceAt) -> None:
    """A server that hangs (SIGSTOP, a blocked disk) accepts no connections, but is not down."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as stopped, ExitStack() as clients:
        url = f"http://127.0.0.1:{stopped.getsockname()[1]}"
        for _ in range(3):
            client = clients.enter_context(socket.socket())
            client.setblocking(False)  # noqa: FBT003
            client.connect_ex(stopped.getsockname())
        reading = read(source_at(url))
    assert (reading.state.name, reading.snapshot) == ("busy", {"active_models": None})


LEFT_TO_THE_INTERPRETER = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
"""httpcore does not close a Unix socket that cannot connect; a test of its own counts the open descriptors."""


@LEFT_TO_THE_INTERPRETER
class TestUnixSocket:
    def test_a_missing_socket_is_down(self, source_at: SourceAt, tmp_path: Path) -> None:
        reading = read(source_at(f"unix://{tmp_path}/none.sock"))
        assert (reading.state.name, reading.snapshot) == ("down", NO_SERVER)

    def test_a_file_that_is_no_socket_is_down(self, source_at: SourceAt, tmp_path: Path) -> None:
        (tmp_path / "file.sock").write_text("x")
        assert read(source_at(f"unix://{tmp_path}/file.sock")).state.name == "down"

    def test_a_socket_without_a_listener_is_down(self, source_at: SourceAt, tmp_path: Path) -> None:
        with socket.create_server(f"{tmp_path}/old.sock", family=socket.AF_UNIX):
            pass
        assert read(source_at(f"unix://{tmp_path}/old.sock")).state.name == "down"

    def test_a_path_that_is_too_long_cannot_be_reached(self, source_at: SourceAt, tmp_path: Path) -> None:
        assert read(source_at(f"unix://{tmp_path}/{'x' * 200}.sock")).state.name == "unreachable"

    def test_a_full_queue_is_busy(self, source_at: SourceAt, tmp_path: Path) -> None:
        path = f"{tmp_path}/full.sock"
        with socket.create_server(path, family=socket.AF_UNIX, backlog=0), ExitStack() as clients:
            for _ in range(3):
                client = clients.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)  # noqa: FBT003
                client.connect_ex(path)
            reading = read(source_at(f"unix://{path}"))
        assert (reading.state.name, reading.snapshot) == ("busy", {"active_models": None})

    @pytest.mark.parametrize("name", ["silence", "1 GB", "headers without end", "HTML"])
    def test_hostile_answers_are_the_same_there(self, source_at: SourceAt, tmp_path: Path, name: str) -> None:
        with OddServer(lambda _: EVERYTHING[name].pieces(), unix_socket=tmp_path / "odd.sock") as server:
            reading = read(source_at(server.url, SHORT_SECONDS if name in SLOW else LONG_SECONDS))
        assert (reading.state.name in EVERYTHING[name].states, reading.snapshot) == (
            True,
            {"active_models": None},
        )


class TestTls:
    """Certificates and handshakes that fail."""

    @pytest.fixture
    def authority(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(tmp_path / "authority.pem")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
        return authority

    def refusal(
        self, source: SourceAt, url: str, state: str = "wrong answer", timeout: float = LONG_SECONDS
    ) -> str:
        reading = read(source(url, timeout))
        assert (reading.state.name, reading.snapshot) == (state, {"active_models": None})
        return reading.state.message

    def served(self, certificate: trustme.LeafCert) -> OddServer:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        return OddServer(good, context)

    def test_the_message_about_an_expired_certificate_says_so(
        self, source_at: SourceAt, authority: trustme.CA
    ) -> None:
        yesterday = datetime.now(UTC) - timedelta(days=1)
        with self.served(authority.issue_cert("127.0.0.1", not_after=yesterday)) as server:
            message = self.refusal(source_at, server.url)
        assert "expired" in message
        assert "SSL_CERT_FILE" not in message  # it would not help

    def test_the_message_about_a_certificate_of_another_host_says_so(
        self, source_at: SourceAt, authority: trustme.CA
    ) -> None:
        with self.served(authority.issue_cert("example.org")) as server:
            assert "mismatch" in self.refusal(source_at, server.url)

    def test_the_message_about_a_self_signed_certificate_names_the_variable_that_fixes_it(
        self, source_at: SourceAt, authority: trustme.CA
    ) -> None:
        del authority
        with self.served(trustme.CA().issue_cert("127.0.0.1")) as server:
            assert "SSL_CERT_FILE" in self.refusal(source_at, server.url)

    def test_a_server_without_tls_at_an_https_url_is_a_wrong_answer(self, source_at: SourceAt) -> None:
        with OddServer(good) as server:
            assert "https" in self.refusal(source_at, server.url.replace("http:", "https:"))

    def test_a_server_with_tls_at_an_http_url_is_a_wrong_answer(
        self, source_at: SourceAt, authority: trustme.CA
    ) -> None:
        with self.served(authority.issue_cert("127.0.0.1")) as server:
            self.refusal(source_at, server.url.replace("https:", "http:"))

    def test_a_handshake_that_hangs_is_busy(self, source_at: SourceAt) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            self.refusal(source_at, f"https://127.0.0.1:{silent.getsockname()[1]}", "busy", SHORT_SECONDS)

    def test_a_handshake_that_ends_at_once_is_a_wrong_answer(self, source_at: SourceAt) -> None:
        with OddServer(lambda _: iter([])) as server:
            self.refusal(source_at, server.url.replace("http:", "https:"))

    @pytest.mark.parametrize(
        "name",
        [
            "dripping headers",
            "1 GB",
            *(pytest.param(name, marks=pytest.mark.slow) for name in ("dripping body", "dripping trailer")),
        ],
    )
    def test_hostile_answers_are_the_same_there(
        self, source_at: SourceAt, authority: trustme.CA, name: str
    ) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        with OddServer(lambda _: EVERYTHING[name].pieces(), context) as server:
            reading = read(source_at(server.url, SHORT_SECONDS if name in SLOW else LONG_SECONDS))
        assert (reading.state.name in EVERYTHING[name].states, reading.snapshot) == (
            True,
            {"active_models": None},
        )


def until_the_end(_status: int, body: str) -> bytes:
    return b"HTTP/1.0 200 OK\r\n\r\n" + body.encode()


def in_chunks(_status: int, body: str) -> bytes:
    data = body.encode()
    pieces = [data[at : at + 200] for at in range(0, len(data), 200)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


@pytest.mark.parametrize("form", [answer, until_the_end, in_chunks])
@pytest.mark.parametrize("odd_path", ["/props", "/metrics"])
@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 97])
def test_an_answer_that_is_cut_at_any_byte_has_no_value_that_the_whole_one_lacks(
    form: Callable[[int, str], bytes], odd_path: str, step: int
) -> None:
    body = PROPS if odd_path == "/props" else METRICS
    whole, end = form(200, body), 0
    with OddServer(lambda path: iter([whole[:end]]) if path == odd_path else good(path)) as server:
        source = make_source(server.url, timeout=5)
        end = len(whole)
        read(source)  # saves the row of the model
        truth = values(read(source))
        for end in (*range(len(whole) - 10, len(whole)), *range(0, len(whole), step)):
            reading = read(source)
            assert reading.state.name in ("up", "wrong answer"), (end, reading.state)
            for row in [values(reading)] if reading.rows else []:
                assert all(row[name] in (None, truth[name]) for name in row), end
        source.close()


NO_SERVER = {"active_models": 0, "cpu_usage": 0.0, "memory_usage": 0.0, "uptime": 0.0}


def counters(path: str, run: int) -> str:
    """Return an answer whose counter is the number of the run."""
    return PROPS if path == "/props" else METRICS.replace("n_decode_total 96", f"n_decode_total {run}")


class Restarts:
    """A server that is stopped in different ways, and the readings of a source.

    Args:
        server: the server, which is running.
        source: the source that reads it.
    """

    def __init__(self, server: RestartingServer, source: LlamaServerSource) -> None:
        self._server = server
        self._source = source
        self._health = Health("llama_server")

    def read(self, state: str) -> None:
        reading = observe(self._health, lambda: read(self._source), lambda reading: reading.state)
        assert reading
        assert reading.state.name == state, reading.state
        assert reading.snapshot == ({"active_models": 1} if state == "up" else NO_SERVER)
        runs = [values(reading)["n_decode_total"]] if rows(reading) else []
        assert runs == ([self._server.run] if state == "up" else [])

    def round(self, number: int) -> None:
        """Stop the server between two samples, in the middle of an answer, and so briefly that no sample sees it."""
        self._server.stop()
        self.read("down")
        self.read("down")
        self._server.start()
        self.read("up")
        self._server.dies_after = number * 37 % len(METRICS)
        self.read("down")
        self._server.start()
        self.read("up")
        self._server.stop()
        self._server.start()
        self.read("up")


@LEFT_TO_THE_INTERPRETER
@pytest.mark.parametrize("rounds", [pytest.param(334, marks=pytest.mark.slow), 9])
@pytest.mark.parametrize("way", ["port", "unix socket"])
def test_restarts_of_the_server_leak_nothing_and_are_logged_once_each(
    tmp_path: Path, way: str, rounds: int
) -> None:
    process, levels, memory = psutil.Process(), [], []
    with structlog.testing.capture_logs() as logged, ExitStack() as stack:
        server = stack.enter_context(
            RestartingServer(counters, tmp_path / "llama.sock" if way == "unix socket" else None)
        )
        source = make_source(server.url, LONG_SECONDS)
        stack.callback(source.close)
        restarts = Restarts(server, source)
        restarts.read("up")
        tracemalloc.start()
        stack.callback(tracemalloc.stop)
        for number in range(rounds):
            logged.clear()
            restarts.round(number)
            assert [line["event"].split(":")[1].strip() for line in logged] == ["down", "up", "down", "up"]
            levels.append((process.num_fds(), process.num_threads()))
            if number in (rounds // 3, rounds - 1):
                memory.append(memory_of_the_client())
    assert levels[-1] == levels[rounds // 3]
    assert memory[1] - memory[0] < 32 * 1024  # a leak of 50 bytes per restart would be more


def memory_of_the_client() -> int:
    """Return the bytes that the collector and its libraries have allocated since the start of the tracing."""
    gc.collect()
    files = ("*/collector/*", "*/httpcore/*", "*/h11/*", "*/ssl.py", "*/socket.py")
    snapshot = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, file) for file in files])  # noqa: FBT003
    return sum(trace.size for trace in snapshot.statistics("filename"))
