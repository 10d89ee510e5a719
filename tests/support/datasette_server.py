"""Datasette as data/README.md starts it."""

import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from tests.support.llama_server import START_SECONDS, free_port

ROOT = Path(__file__).parents[2]
OPTIONS = "--metadata config/datasette.yaml --setting sql_time_limit_ms 10000"


class DatasetteServer:
    """Shows one database until the end of the `with` block.

    Args:
        database: the file; it must be called llama-dashboard.db.
    """

    def __init__(self, database: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [
            sys.executable, "-m", "datasette", "serve", str(database), *OPTIONS.split(), "--port", str(self.port),
        ]  # fmt: skip
        self._process: subprocess.Popen[str] | None = None

    def get(self, path: str) -> str:
        """Return a page, which must exist."""
        answer = httpx.get(f"{self.url}{path}", timeout=60, follow_redirects=True)
        assert answer.status_code == httpx.codes.OK, (path, answer.text)
        return answer.text

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self._process.communicate()[0]
            try:
                httpx.get(f"{self.url}/-/versions.json")
            except httpx.TransportError:
                time.sleep(0.02)  # there is no event for a foreign process that listens
            else:
                return self
        raise AssertionError(f"no Datasette at {self.url} after {START_SECONDS} s")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process
        self._process.terminate()
        self._process.communicate()
