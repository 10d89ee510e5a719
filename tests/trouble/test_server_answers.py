"""Real trouble with the answers of llama-servers, and of what stands between: numbers, HTTP, names, keys, rows."""

import gzip
import json
import os
import socket
import threading
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from collector.errors import ServerUnreachable, SettingsError
from collector.parsers.exposition import parse_exposition
from collector.parsers.server_answers import parse_props
from collector.settings import LlamaServerSettings, read_api_key
from collector.sources.llama import model_rows
from collector.sources.llama.events import MAX_CHANGES
from collector.sources.llama.http import Address, LlamaHttp
from collector.sources.llama.local import sockets
from collector.sources.llama.local.sockets import ListeningSocket
from collector.sources.llama.router import MAX_CHILDREN
from tests.support.odd_server import OddServer, answer
from tests.support.sampled_server import (
    ROUTER,
    Answers,
    Sampled,
    listed,
    metrics,
    process,
    props,
    sampled,
)

TOKENS = "tokens_predicted_total"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(f"llamacpp:{TOKENS} 1.23457e+07\n", {TOKENS: 12_345_700.0}, id="6 significant digits"),
        pytest.param("llamacpp:n_busy_slots_per_decode -nan\n", {"n_busy_slots_per_decode": None},
                     id="llama.cpp#11915: a division by zero"),
        pytest.param('"llamacpp:n_decode_total 5\\n"', {"n_decode_total": 5.0}, id="llama.cpp#17384: quoted text"),
        pytest.param("llamacpp:n_decode_total -2147483000\n", {"n_decode_total": None}, id="32 bits overflowed"),
        pytest.param(f"llamacpp:{TOKENS} 1.84467e+19\n", {TOKENS: None}, id="decremented below 0 in 64 bits"),
        pytest.param(f"llamacpp:{TOKENS} 9.22337e+18\n", {TOKENS: 9.22337e18}, id="a large one that is possible"),
        pytest.param("llamacpp:requests_deferred -1\n", {"requests_deferred": -1.0}, id="a gauge may be negative"),
        pytest.param("llamacpp:prompt_tokens_seconds inf\r\nllamacpp:n_decode_total 1\r\n",
                     {"prompt_tokens_seconds": None, "n_decode_total": 1.0}, id="lines end in CR LF"),
        pytest.param("vllm:x_total 1\nllamacpp:n_decode_total 2\nllamacpp_router:model_up 1\n",
                     {"n_decode_total": 2.0}, id="llama.cpp#25330: names with other prefixes"),
        pytest.param('llamacpp:p{position="a b",m="}"} 2\n', {'p{position="a b",m="}"}': 2.0}, id="odd labels"),
    ],
)  # fmt: skip
def test_each_number_is_stored_as_it_is_or_as_unknown(text: str, expected: dict[str, float | None]) -> None:
    assert parse_exposition(text) == expected


@pytest.mark.parametrize(
    ("text", "name", "path"),
    [
        pytest.param({"model_path": "/m/a-Q4.gguf", "model_alias": "chat"}, "chat", "/m/a-Q4.gguf", id="an alias"),
        pytest.param({"default_generation_settings": {"model": "/m/a-Q4.gguf", "n_ctx": 512}}, "a-Q4", "/m/a-Q4.gguf",
                     id="before December 2024"),
        pytest.param({"default_generation_settings": {"model": 5}}, "unknown", None, id="no text"),
        pytest.param({"model_path": "", "default_generation_settings": {"model": "/m/b.gguf"}}, "b", "/m/b.gguf",
                     id="an empty path"),
        pytest.param({}, "unknown", None, id="no name at all"),
    ],
)  # fmt: skip
def test_the_name_of_a_model_is_read_from_each_form_of_props(
    text: dict[str, object], name: str, path: str | None
) -> None:
    model = parse_props(json.dumps(text)).model
    assert model
    assert (model.name, model.path) == (name, path)


def chunked(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (1, body[i : i + 1]) for i in range(len(body))) + b"0\r\n\r\n"


TEXT = metrics(5).encode()
HTML = b"<html><h1>502 Bad Gateway</h1><hr>nginx</html>"


@pytest.mark.parametrize(
    ("sent", "state", "tokens"),
    [
        pytest.param(chunked(TEXT), "up", 5, id="chunked, one byte in each"),
        pytest.param(b"HTTP/1.0 200 OK\r\n\r\n" + TEXT, "up", 5, id="HTTP/1.0 without a length"),
        pytest.param(answer(200, TEXT, "Connection: close"), "up", 5, id="no keep-alive"),
        pytest.param(answer(502, HTML, "Content-Type: text/html"), "wrong answer", None, id="nginx: 502 in HTML"),
        pytest.param(answer(200, HTML), "wrong answer", None, id="HTML with status 200"),
        pytest.param(answer(302, "", "Location: http://127.0.0.1:1/login"), "wrong answer", None, id="a redirect"),
        pytest.param(answer(200, gzip.compress(TEXT), "Content-Encoding: gzip"), "wrong answer", None,
                     id="compressed although identity was asked for"),
        pytest.param(answer(501, "{}"), "metrics off", None, id="restarted without --metrics"),
        pytest.param(answer(503, "{}"), "loading", None, id="503 for minutes"),
        pytest.param(answer(401, "{}"), "needs key", None, id="restarted with --api-key"),
    ],
)  # fmt: skip
def test_each_form_of_an_answer_has_its_state(
    tmp_path: Path, sent: bytes, state: str, tokens: int | None
) -> None:
    with OddServer(lambda path: iter([answer(200, props()) if path == "/props" else sent])) as server:
        watched = Sampled(tmp_path / "x.db", server.url)
        assert [watched.sample()["state"] for _ in range(2)] == [state] * 2
        stored = [row[0] for row in watched.query(f"SELECT {TOKENS} FROM llama_metrics")]
        assert stored == ([] if tokens is None else [tokens] * 2)
        watched.close()


def test_a_server_on_the_ipv6_loopback_is_read_by_address_and_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """llama-swap#812, bolt.diy#877: localhost is ::1 for one program and 127.0.0.1 for another."""
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *a, **k: resolve("::1" if host == "localhost" else host, *a, **k)
    )
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("::1 is not an address of this machine")
    with listener:

        def serve() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer(200, "x", "Connection: close"))

        thread = threading.Thread(target=serve)
        thread.start()
        for host in ("[::1]", "localhost"):
            http = LlamaHttp(Address(f"http://{host}:{listener.getsockname()[1]}", None, 2))
            assert http.get("/props").text == "x"
            http.close()
        thread.join(10)


def test_a_machine_that_is_switched_off_is_unreachable_and_a_local_server_that_hangs_is_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def silent(*_: object, **__: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", silent)
    http = LlamaHttp(Address("http://198.51.100.7:8080", None, 0.1))
    with pytest.raises(ServerUnreachable):
        http.get("/props")
    http.close()


@pytest.mark.parametrize(
    ("owner_of_child", "sent"),
    [
        pytest.param(1000, True, id="the router's user"),
        pytest.param(1001, False, id="another user listens on the port of a child"),
        pytest.param(None, False, id="nobody is known to listen there"),
    ],
)
def test_the_key_is_sent_only_to_a_process_of_the_router_s_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner_of_child: int | None, *, sent: bool
) -> None:
    requests: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as child:

        def record() -> None:
            while True:
                try:
                    connection, _ = child.accept()
                except OSError:
                    return
                with connection:
                    requests.append(connection.recv(65536).decode())

        thread = threading.Thread(target=record, daemon=True)
        thread.start()
        port = child.getsockname()[1]
        answers = Answers({"/props": ROUTER, "/models": listed(("a", "loaded", port))})
        with OddServer(answers.script) as server:
            router_port = urlsplit(server.url).port or 0
            table = {ListeningSocket(router_port, 1000, 1)}
            if owner_of_child is not None:
                table.add(ListeningSocket(port, owner_of_child, 2))
            monkeypatch.setattr("collector.sources.llama.router.listening_sockets", lambda: frozenset(table))
            watched = Sampled(tmp_path / "x.db", server.url, api_key="s3cr3t")
            watched.sample()
            watched.close()
        child.shutdown(socket.SHUT_RDWR)
    thread.join(10)
    assert requests
    assert any("s3cr3t" in request for request in requests) == sent


def test_the_sockets_of_this_machine_are_listed_with_their_owner() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert sockets.owners_of_port(sockets.listening_sockets(), port) == {os.getuid()}
        inode = os.fstat(listener.fileno()).st_ino
        assert ListeningSocket(port, os.getuid(), inode) in sockets.listening_sockets()


def test_a_router_with_other_names_in_each_sample_adds_a_bounded_number_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_rows, "MAX_ROWS", 700)
    answers = Answers({"/props": ROUTER})
    with sampled(tmp_path, answers) as server:
        for number in range(5):
            names = [(f"m{number}-{model}", "loaded", 0) for model in range(400)]
            answers.by_path["/models"] = listed(*names)
            server.sample(1000 + number)
        assert server.query("SELECT count(*) FROM models") == [(700,)]
        assert server.query("SELECT count(*) <= ? FROM model_events".replace("?", str(5 * MAX_CHANGES))) == [
            (1,)
        ]
        assert server.query("SELECT count(*) <= ? FROM server_runs".replace("?", str(5 * MAX_CHILDREN))) == [
            (1,)
        ]


def test_the_changes_beyond_the_bound_of_one_sample_are_stored_in_the_next(tmp_path: Path) -> None:
    loaded = listed(*((f"m{number}", "loaded", 0) for number in range(MAX_CHANGES + 10)))
    with sampled(tmp_path, Answers({"/props": ROUTER, "/models": loaded})) as server:
        counts = []
        for timestamp in (1000, 1005, 1010):
            server.sample(timestamp)
            counts += server.query("SELECT count(*) FROM model_events")
        assert counts == [(MAX_CHANGES,), (MAX_CHANGES + 10,), (MAX_CHANGES + 10,)]


def test_no_sample_refers_to_a_row_of_models_that_a_scan_deleted(tmp_path: Path) -> None:
    answers = Answers({"/props": props(), "/metrics": metrics(5)})
    with sampled(tmp_path, answers) as server:
        server.sample(1000)
        with server.database.transaction() as connection:
            connection.execute("DELETE FROM models")
        server.sample(1005)
        orphans = "SELECT count(*) FROM llama_metrics WHERE timestamp = 1005 AND model_id NOT IN (SELECT id FROM models)"
        assert server.query(orphans) == [(0,)]
        assert server.query("SELECT count(*) FROM llama_metrics WHERE model_id IS NULL") == [(0,)]


def test_every_model_id_of_a_fresh_database_is_that_of_a_row(tmp_path: Path) -> None:
    answers = Answers({"/props": ROUTER, "/models": listed(("a", "loaded", 0), ("b", "unloaded", 0))})
    with sampled(tmp_path, answers) as server:
        server.sample()
        for table in ("llama_metrics", "model_events", "server_runs"):
            orphans = (
                f"SELECT count(*) FROM {table} WHERE coalesce(model_id, '') NOT IN (SELECT id FROM models)"
            )
            assert server.query(orphans) == [(0,)]


@pytest.mark.parametrize(
    ("arguments", "more", "expected"),
    [
        pytest.param(("-t", "6", "-b", "1024"), {"n_ctx": 8192}, (8192, 6, 1024), id="all are known"),
        pytest.param(("--threads=-1",), {}, (4096, 4, 512), id="automatic, and an old build: the defaults"),
        pytest.param((), {"n_ctx": 2048}, (2048, 4, 512), id="only the context is known"),
    ],
)
def test_a_loaded_model_has_the_options_of_its_server_or_the_documented_defaults(
    tmp_path: Path, arguments: tuple[str, ...], more: dict[str, int], expected: tuple[int, int, int]
) -> None:
    answers = Answers({"/props": props(default_generation_settings=more), "/metrics": metrics(5)})
    with sampled(tmp_path, answers) as server:
        server.visible.processes = (process("--port", str(urlsplit(server.url).port), *arguments),)
        server.sample()
        server.sample()
        assert server.query("SELECT ctx_size, threads, batch_size FROM models") == [expected]


def test_work_under_another_url_of_one_process_counts_once(tmp_path: Path) -> None:
    """The URL is changed from A to B and back to A."""
    answers = Answers({"/props": props(), "/metrics": metrics(100)})
    with sampled(tmp_path, answers) as server:
        first = server.url
        for url, tokens in ((first, 110), (first.replace("127.0.0.1", "0.0.0.0"), 250), (first, 400)):
            server.restart_collector(url)
            for more in (0, 5):
                answers.by_path["/metrics"] = metrics(tokens + more)
                server.sample(1000 + tokens + more)
        assert server.tokens == 15
        assert server.events.count("loaded") <= 2


def test_a_full_buffer_does_not_drop_the_first_row_of_a_run(tmp_path: Path) -> None:
    answers = Answers({"/props": props(), "/metrics": metrics(100)})
    with sampled(tmp_path, answers) as server:
        server.sample(1000)
        answers.header = "2000000"
        for timestamp, tokens in ((1005, 30), (1010, 40), (1015, 50)):
            answers.by_path["/metrics"] = metrics(tokens)
            server.sample(timestamp, drop_rows=timestamp < 1015)
        assert server.tokens == 50


def test_a_build_that_is_read_seldom_is_read_once_at_first(tmp_path: Path) -> None:
    """192 of 320 tokens were missed: the value before the first request was not known."""
    answers = Answers({"/props": props(build_info="b0-unknown"), "/metrics": metrics(1000)})
    with sampled(tmp_path, answers) as server:
        seen = process("--port", str(urlsplit(server.url).port))
        for used, tokens in ((1.0, 1000), (1.0, 1000), (3.0, 1320), (3.0, 1320)):
            server.visible.processes = (replace(seen, cpu_seconds=used),)
            answers.by_path["/metrics"] = metrics(tokens)
            server.sample()
        assert server.tokens == 320


def test_a_credential_that_is_empty_is_named_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "api-key").write_text("\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    monkeypatch.delenv("LLAMA_API_KEY", raising=False)
    with pytest.raises(SettingsError, match="the systemd credential api-key: "):
        read_api_key(LlamaServerSettings())


def test_no_server_is_asked_for_a_compressed_answer() -> None:
    with OddServer(lambda _: iter([answer(200, "{}")])) as server:
        http = LlamaHttp(Address(server.url, None, 5.0))
        http.get("/props")
        http.close()
    headers = server.requests[0].lower().split("\r\n")
    assert [line for line in headers if line.startswith("accept-encoding")] == ["accept-encoding: identity"]
