"""A stub of a router with any number of models, for measurements that would take too long with a real one.

Usage: python -m tests.support.many_models --models 200 [--loaded 8] [--turn 0]

Prints its URL, and exits when its standard input ends. All loaded models answer on the router's own port,
each below a prefix of its own; their counters grow with every request for metrics.
"""

import argparse
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BUILD = "b11434-stub"
"""Recent enough that its models may be polled at any time."""

COUNTERS = (
    "prompt_tokens_total", "prompt_tokens_cached_total", "prompt_seconds_total", "tokens_predicted_total",
    "tokens_predicted_seconds_total", "n_decode_total", "n_tokens_max",
)  # fmt: skip


class Models:
    """The answers of the router and of its models.

    Args:
        count: how many it has.
        loaded: how many of them are loaded.
        turn: requests of the list after which the first loaded model is replaced by another one; 0 = never.
    """

    def __init__(self, count: int, loaded: int, turn: int) -> None:
        self._count, self._loaded, self._turn = count, loaded, turn
        self._list_requests = 0
        self._metrics_requests: dict[str, int] = {}

    def answer(self, path: str, port: int) -> str:
        if path == "/props":
            return json.dumps({"role": "router", "max_instances": self._loaded, "build_info": BUILD})
        if path == "/models":
            return self._list(port)
        model, _, page = path.lstrip("/").partition("/")
        if page == "props":
            return json.dumps({"model_path": _path(model), "model_alias": model, "build_info": BUILD})
        return self._metrics(model)

    def _list(self, port: int) -> str:
        self._list_requests += 1
        first = self._list_requests // self._turn if self._turn else 0
        loaded = frozenset((first + offset) % self._count for offset in range(self._loaded))
        return _list(self._count, loaded, port)

    def _metrics(self, model: str) -> str:
        self._metrics_requests[model] = count = self._metrics_requests.get(model, 0) + 1
        lines = (f"# TYPE llamacpp:{name} counter\nllamacpp:{name} {10 * count}\n" for name in COUNTERS)
        return "".join(lines) + "llamacpp:requests_processing 1\nllamacpp:requests_deferred 0\n"


@lru_cache(1)
def _list(count: int, loaded: frozenset[int], port: int) -> str:
    entries = [_entry(f"model-{number}", number in loaded, port) for number in range(count)]
    return json.dumps({"object": "list", "data": entries})


def _path(model: str) -> str:
    return f"/srv/models/{model}.gguf"


def _entry(model: str, is_loaded: bool, port: int) -> dict[str, Any]:  # noqa: FBT001
    arguments = ["llama-server", "--host", "127.0.0.1", "--metrics", "--port", str(port if is_loaded else 0)]
    arguments += ["--api-prefix", f"/{model}", "--alias", model, "--ctx-size", "512", "--model", _path(model)]
    entry: dict[str, Any] = {
        "id": model,
        "object": "model",
        "owned_by": "llamacpp",
        "created": 1795373793,
        "status": {
            "value": "loaded" if is_loaded else "unloaded",
            "args": arguments,
            "preset": f"[{model}]\n" * 8,
        },
        "architecture": {"input_modalities": ["text"], "output_modalities": ["text"]},
        "source": "models_dir",
    }
    if is_loaded:
        entry["meta"] = {"vocab_type": 1, "n_vocab": 262144, "n_ctx": 512, "n_params": 268098176}
    return entry


def serve(models: Models) -> ThreadingHTTPServer:
    """Start a server on a free port, in threads of its own."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            body = models.answer(self.path, server.server_port).encode()
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            self.wfile.write(head.encode() + body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@contextmanager
def router_of(models: int, loaded: int, turn: int = 0) -> Iterator[str]:
    """Run such a router in a process of its own until the end of the block; yield its URL."""
    options = ["--models", str(models), "--loaded", str(loaded), "--turn", str(turn)]
    command = [sys.executable, "-m", "tests.support.many_models", *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        yield process.stdout.readline().strip()
        process.stdin.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, required=True)
    parser.add_argument("--loaded", type=int, default=8)
    parser.add_argument("--turn", type=int, default=0)
    options = parser.parse_args()
    server = serve(Models(options.models, options.loaded, options.turn))
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
