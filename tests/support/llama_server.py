"""A real llama-server for a test, in a process of its own."""

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

START_SECONDS = 30


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class LlamaServer:
    """Serves one model until the end of the `with` block.

    Args:
        model: path of a GGUF file.
        options: further llama-server options.
        port: where to listen; a free one by default.
        log: file for what it prints.
    """

    def __init__(
        self,
        model: Path,
        options: Sequence[str] = ("--metrics",),
        port: int | None = None,
        log: Path | None = None,
    ) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._arguments = ["--model", str(model), "--port", str(self.port), *options]
        self._log = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, ready_url: str | None = None, **client_options: Any) -> Self:
        output = self._log.open("ab") if self._log else subprocess.DEVNULL
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.serve", *self._arguments],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
        )
        if not isinstance(output, int):
            output.close()
        with httpx.Client(timeout=5, trust_env=False, **client_options) as client:
            self._await(client, (ready_url or self.url) + "/health")
        return self

    def _await(self, client: httpx.Client, url: str) -> None:
        assert self.process
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"the server ended with {self.process.returncode}"
            try:
                if client.get(url).status_code in (200, 401):
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.02)  # nothing tells when a foreign process listens
        raise AssertionError(f"no llama-server at {url} after {START_SECONDS} s")

    def complete(self, tokens: int = 16, prompt: str = "a b c") -> None:
        """Let it generate. Some builds answer 500 because random bytes are no text: counted all the same."""
        body = {"prompt": prompt, "n_predict": tokens, "ignore_eos": True}
        assert httpx.post(f"{self.url}/completion", json=body, timeout=60).status_code in (200, 500)

    def counters(self) -> dict[str, float]:
        """What /metrics says, read independently of the collector's parser."""
        text = httpx.get(f"{self.url}/metrics").text
        text = json.loads(text) if text.startswith('"') else text
        return {m[1]: float(m[2]) for m in re.finditer(r"^llamacpp:(\w+) (\S+)$", text, re.M)}

    def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()
        assert self.process.stdin
        self.process.stdin.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process and self.process.poll() is None:
            self.kill()
