"""One server whose answers a test gives, sampled into a real database, with the processes that it names."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from collector.catalog import open_database
from collector.database import Database
from collector.database.buffer import Buffer, Retention
from collector.database.writer import Writer
from collector.sources.base import Reading, Tick
from collector.sources.llama.http import Address
from collector.sources.llama.local.process import LlamaProcess
from collector.sources.llama.processes import LlamaProcessSource
from collector.sources.llama.runs import ServerRuns
from collector.sources.llama.server import LlamaServerSource
from collector.sources.registry import build_llama_server
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
        self.processes: tuple[LlamaProcess, ...] = ()

    def read(self, _tick: Tick) -> Reading[tuple[LlamaProcess, ...]]:
        return Reading(self.processes, snapshot=self._snapshot(self.processes))


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
        api_key: its key.
        processes: the source of processes; None for one that finds those in `visible.processes`.
    """

    def __init__(
        self, path: Path, url: str, api_key: str | None = None, processes: LlamaProcessSource | None = None
    ) -> None:
        self.database: Database = open_database(path)
        self.visible = VisibleProcesses(url)
        self._processes = processes or self.visible
        self._address = Address(url, api_key, 1.0)
        self.source = self._build()

    def _build(self) -> LlamaServerSource:
        runs = ServerRuns(self.database.query)
        return build_llama_server(self._address, self._processes, None, self.database, runs)

    def restart_collector(self, url: str | None = None) -> None:
        self.source.close()
        self._address = replace(self._address, url=url or self._address.url)
        self.source = self._build()

    def sample(self, timestamp: int = 1000, *, drop_rows: bool = False) -> dict[str, Any]:
        """Store one sample, and return its columns of `metrics` and the state of the server.

        Args:
            timestamp: Unix seconds of the sample.
            drop_rows: whether the buffer is full, so that it drops what may be dropped.
        """
        tick, buffer = Tick(timestamp), Buffer()
        columns = {**self._processes.defaults, **tick.read(self._processes).snapshot}
        reading = tick.read(self.source)
        buffer.add(reading.changes, Retention.KEPT)
        if not drop_rows:
            buffer.add([table.insert(row) for table, row in reading.rows], Retention.DROPPABLE)
        Writer(self.database, buffer).flush()
        return {**columns, **reading.snapshot, "state": reading.state.name}

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        return [tuple(row.values()) for row in self.database.query(statement)]

    @property
    def url(self) -> str:
        return self._address.url

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
def sampled(tmp_path: Path, answers: Answers) -> Iterator[Sampled]:
    """Start a server with these answers, which the test can change between two samples of it."""
    with OddServer(answers.script) as server:
        watched = Sampled(tmp_path / "x.db", server.url)
        try:
            yield watched
        finally:
            watched.close()


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
