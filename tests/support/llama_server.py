"""A real llama-server for a test, in a process of its own."""

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

START_SECONDS = 30


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def process_name(port: int) -> str:
    """What the process of the server on a port is called, so that others on the machine disturb no test."""
    return f"llama-{port}"


class LlamaServer:
    """Serves one model until the end of the `with` block.

    Args:
        model: path of a GGUF file.
        options: further llama-server options.
        port: where to listen; a free one by default.
        prefix: of all its paths, as --api-prefix gives it.
        unix_socket: where it listens instead of the port.
        api_key: what it wants.
        log: file for what it prints.
        program: a llama-server built from source; by default the one in the wheel `xllamacpp`.
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
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}{prefix}"
        self._unix_socket = unix_socket
        wheel = [sys.executable, "-m", "tests.support.serve", "--process-name", process_name(self.port)]
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
            self._await()
        except BaseException:
            self.kill()
            raise
        return self

    def _await(self) -> None:
        assert self.process
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"the server ended with {self.process.returncode}"
            if self._is_healthy():
                return
            time.sleep(0.02)  # nothing tells when a foreign process listens
        raise AssertionError(f"no llama-server at {self.url} after {START_SECONDS} s")

    def _is_healthy(self) -> bool:
        if self._unix_socket and not self._unix_socket.exists():
            return False
        try:
            return self._client.get(f"{self.url}/health").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def complete(self, tokens: int = 16, prompt: str = "a b c") -> None:
        """Let it generate. Some builds answer 500 because random bytes are no text: counted all the same."""
        body = {"prompt": prompt, "n_predict": tokens, "ignore_eos": True}
        assert self._client.post(f"{self.url}/completion", json=body).status_code in (200, 500)

    def counters(self) -> dict[str, float]:
        """What /metrics says, read independently of the collector's parser."""
        text = self._client.get(f"{self.url}/metrics").text
        text = json.loads(text) if text.startswith('"') else text
        return {m[1]: float(m[2]) for m in re.finditer(r"^llamacpp:(\w+) (\S+)$", text, re.MULTILINE)}

    def kill(self) -> None:
        """End it at once; nothing where it has ended."""
        self._client.close()
        if self.process:
            self.process.kill()
            self.process.communicate()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
