"""A real llama-server for a test, in a process of its own."""

import json
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

START_SECONDS = 30


PORTS = range(10_000, 32_000)
"""Below the ports that Linux gives to clients, one of which could be in use when the server starts."""


def free_port() -> int:
    """Return a port that nobody listens on.

    It is chosen at random, not by the kernel: two tests that run at the same time hardly ever choose the same.
    """
    while True:
        port = secrets.choice(PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def process_name(port: int) -> str:
    """Return the name of the process of the server on a port, which no other llama-server on the machine has."""
    return f"llama-{port}"


class LlamaServer:
    """Serves one model until the end of the `with` block.

    Args:
        model: path of a GGUF file.
        options: further llama-server options.
        port: where to listen; a free one by default.
        prefix: of all its paths (--api-prefix).
        unix_socket: where it listens instead of the port.
        api_key: the key that it requires.
        log: file for what it prints.
        program: a llama-server built from source; by default the one in the wheel `xllamacpp`.
        name: of its process; by default `process_name` of its port.
        environment: of the process; None for the test's.
    """

    def __init__(
        self,
        model: Path,
        options: Sequence[str] = ("--metrics",),
        *,
        port: int | None = None,
        prefix: str = "",
        unix_socket: Path | None = None,
        api_key: str | None = None,
        log: Path | None = None,
        program: Path | None = None,
        name: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}{prefix}"
        self._unix_socket = unix_socket
        wheel = [
            sys.executable,
            "-m",
            "tests.support.serve",
            "--process-name",
            name or process_name(self.port),
        ]
        served = [str(program)] if program else wheel
        self._command = [*served, "--model", str(model), "--port", str(self.port), *options]
        self._environment = environment
        self._log = log or Path("/dev/null")
        self._client = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(unix_socket) if unix_socket else None),
            headers={"Authorization": f"Bearer {api_key}"} if api_key else None,
            timeout=60,
        )
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self._log.open("ab") as output:
            self.process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=self._environment
            )
        try:
            self._wait_until_healthy()
        except BaseException:
            self.kill()
            raise
        return self

    def _wait_until_healthy(self) -> None:
        assert self.process
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"the server ended with {self.process.returncode}"
            if self._is_healthy():
                return
            time.sleep(0.02)  # there is no event for a foreign process that listens
        raise AssertionError(f"no llama-server at {self.url} after {START_SECONDS} s")

    def _is_healthy(self) -> bool:
        if self._unix_socket and not self._unix_socket.exists():
            return False
        try:
            return self._client.get(f"{self.url}/health").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def complete(self, tokens: int = 16, prompt: str = "a b c") -> None:
        """Generate tokens. Some builds answer 500 because random bytes are not text; their counters move anyway."""
        body = {"prompt": prompt, "n_predict": tokens, "ignore_eos": True}
        assert self._client.post(f"{self.url}/completion", json=body).status_code in (200, 500)

    def counters(self) -> dict[str, float]:
        """Return the values of /metrics, parsed independently of the collector."""
        text = self._client.get(f"{self.url}/metrics").text
        text = json.loads(text) if text.startswith('"') else text
        return {m[1]: float(m[2]) for m in re.finditer(r"^llamacpp:(\w+) (\S+)$", text, re.MULTILINE)}

    def kill(self) -> None:
        """Kill the process if it still runs."""
        self._client.close()
        if self.process:
            self.process.kill()
            self.process.communicate()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
