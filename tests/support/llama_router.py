"""The real llama-server in router mode, built from source."""

import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from tests.support.llama_server import START_SECONDS, free_port


class LlamaRouter:
    """Routes over the models of a directory until the end of the `with` block.

    Args:
        binary: the llama-server program.
        models: directory of GGUF files.
        log: file for what it prints.
        options: further llama-server options.
        api_key: the key that it requires.
        environment: of the process; None for the test's.
    """

    def __init__(
        self,
        binary: Path,
        models: Path,
        log: Path,
        options: Sequence[str] = (),
        *,
        api_key: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        self._command = [
            str(binary), "--models-dir", str(models), "--host", "127.0.0.1", "--port", str(self.port),
            "--metrics", "--ctx-size", "512", "--threads", "1", *options,
        ]  # fmt: skip
        self._environment = environment
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self._command,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env=self._environment,
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if httpx.get(f"{self.url}/health").status_code == httpx.codes.OK:
                    return self
            except httpx.TransportError:
                time.sleep(0.02)
        raise AssertionError(f"no router after {START_SECONDS} s")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process
        self.process.terminate()
        self.process.wait(20)

    def complete(self, model: str, tokens: int = 16) -> None:
        """Generate tokens with a model, which the router loads where necessary; a load may fail."""
        body = {"model": model, "prompt": "a b c", "n_predict": tokens, "ignore_eos": True}
        body["grammar"] = "root ::= [a-z]*"  # older builds may stop at random bytes that are not text
        answer = httpx.post(f"{self.url}/completion", json=body, headers=self._headers, timeout=60)
        assert answer.status_code in (200, 500), answer.text

    def unload(self, model: str) -> None:
        """Unload a model, as its user does."""
        answer = httpx.post(f"{self.url}/models/unload", json={"model": model}, headers=self._headers)
        assert answer.status_code == httpx.codes.OK, answer.text

    def models(self) -> dict[str, dict[str, Any]]:
        """Return each model's status, as the router lists it."""
        return {
            entry["id"]: entry["status"]
            for entry in httpx.get(f"{self.url}/models", headers=self._headers).json()["data"]
        }

    def states(self) -> dict[str, str]:
        return {name: status["value"] for name, status in self.models().items()}

    def wait_for_state(self, model: str, state: str, seconds: float = 20) -> float:
        """Wait until a model has a state and return the seconds that it took."""
        started = time.monotonic()
        while (value := self.states()[model]) != state:
            assert time.monotonic() - started < seconds, f"{model} is {value}, not {state}"
            time.sleep(0.05)
        return time.monotonic() - started

    def child_port(self, model: str) -> int:
        arguments = self.models()[model]["args"]
        return int(arguments[arguments.index("--port") + 1])

    def child_counters(self, model: str) -> dict[str, float]:
        """Return the counters of the model's own process."""
        text = httpx.get(f"http://127.0.0.1:{self.child_port(model)}/metrics", headers=self._headers).text
        return {m[1]: float(m[2]) for m in re.finditer(r"^llamacpp:(\w+) (\S+)$", text, re.MULTILINE)}
