"""The collector beside real servers whose log it reads: its rows are what the clients were answered.

Slow: the first run builds two versions of llama-server from source.
"""

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.collector import Collector
from tests.support.llama_build import CURRENT, OLD, llama_server_program
from tests.support.llama_router import LlamaRouter
from tests.support.llama_server import LlamaServer

pytestmark = [pytest.mark.slow, pytest.mark.namespaces, pytest.mark.timeout(1200)]

CLIENTS, CALLS, CANCELS, OVERLONG = 8, 6, 5, 3
TOLERANCE_SECONDS = 0.3
"""Between the clocks of client and log; the machine is busy with both."""

ENDED = "outcome IN ('finished', 'no_generation', 'cancelled', 'error')"


@pytest.fixture(scope="module", params=[CURRENT, OLD], ids=["current", "before b10499"])
def program(request: pytest.FixtureRequest) -> Path:
    return llama_server_program(request.param)


@dataclass(frozen=True, slots=True)
class Call:
    """What a client knows of its call: `timings` of the answer, and Unix seconds of begin and end."""

    timings: dict[str, Any]
    begun_at: float
    ended_at: float


def complete(url: str, number: int, model: str | None = None) -> Call:
    """Generate some tokens; the prompts of some calls begin alike, so that the cache has a part of them."""
    body: dict[str, Any] = {
        "prompt": "a b c d e f g " * (1 + number % 3) + str(number),
        "n_predict": 4 + number % 9,
        "ignore_eos": True,
        "grammar": "root ::= [a-z]*",  # the model answers random bytes, which need not be text
    }
    begun_at = time.time()
    answer = httpx.post(f"{url}/completion", json=body | ({"model": model} if model else {}), timeout=120)
    assert answer.status_code == httpx.codes.OK, answer.text
    return Call(answer.json()["timings"], begun_at, time.time())


def cancel(url: str) -> None:
    """Leave a call while it is answered."""
    body = {
        "prompt": "x y z",
        "n_predict": 400,
        "ignore_eos": True,
        "stream": True,
        "grammar": "root ::= [a-z]*",
    }
    with httpx.stream("POST", f"{url}/completion", json=body, timeout=120) as answer:
        next(answer.iter_bytes())


def fail(url: str) -> None:
    """Send a prompt that does not fit into the context."""
    answer = httpx.post(f"{url}/completion", json={"prompt": "a b c d " * 2000}, timeout=120)
    assert answer.status_code >= httpx.codes.BAD_REQUEST


@contextmanager
def collector_of(url: str, log: Path, directory: Path) -> Iterator[Collector]:
    settings = f'[sampling]\ninterval = 1\n[llama_server]\nurl = "{url}"\n[logs]\nfiles = ["{log}"]\n'
    with Collector(directory, settings) as collector:
        yield collector
        assert collector.stop() == 0


def wait_for_rows(collector: Collector, number: int) -> list[dict[str, Any]]:
    """Wait until so many requests have ended, and return them."""
    collector.wait_for(f"SELECT 1 FROM requests WHERE {ENDED} GROUP BY 1 HAVING count(*) >= {number}", 60)
    return collector.query("SELECT * FROM requests ORDER BY id")


def facts_of_calls(calls: list[Call]) -> Counter[tuple[object, ...]]:
    return Counter(
        (
            one["cache_n"],
            one["prompt_n"],
            one["predicted_n"],
            f"{one['prompt_ms']:.2f}",
            f"{one['predicted_ms']:.2f}",
        )
        for one in (call.timings for call in calls)
    )


def facts_of_rows(rows: list[dict[str, Any]]) -> Counter[tuple[object, ...]]:
    names = ("cached_tokens", "processed_tokens", "generated_tokens")
    return Counter(
        (*(row[name] for name in names), f"{row['prompt_ms']:.2f}", f"{row['generation_ms']:.2f}")
        for row in rows
        if row["outcome"] == "finished"
    )


def test_each_answer_of_parallel_clients_is_a_row_with_its_facts(
    program: Path, tiny_model: Path, tmp_path: Path
) -> None:
    log = tmp_path / "llama.log"
    options = ("--metrics", "--parallel", "4", "--ctx-size", "4096", "--threads", "1")
    with (
        LlamaServer(tiny_model, options, log=log, program=program) as server,
        collector_of(server.url, log, tmp_path) as collector,
    ):
        with ThreadPoolExecutor(CLIENTS) as pool:
            calls = list(pool.map(lambda number: complete(server.url, number), range(CLIENTS * CALLS)))
            list(pool.map(lambda _: cancel(server.url), range(CANCELS)))
            list(pool.map(lambda _: fail(server.url), range(OVERLONG)))
        rows = wait_for_rows(collector, len(calls) + CANCELS + OVERLONG)
        counters = server.counters()
        collector.wait_for("SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM requests WHERE run_id IS NULL)", 60)
        (run,) = collector.query(
            "SELECT DISTINCT server, model, model_id IS NOT NULL AS is_known FROM requests"
        )
    assert Counter(row["outcome"] for row in rows) == {
        "finished": len(calls),
        "cancelled": CANCELS,
        "error": OVERLONG,
    }
    assert facts_of_rows(rows) == facts_of_calls(calls)
    finished = [row for row in rows if row["outcome"] == "finished"]
    begun, ended = min(call.begun_at for call in calls), max(call.ended_at for call in calls)
    assert all(row["started_at"] >= begun - TOLERANCE_SECONDS for row in finished)
    assert all(row["ended_at"] <= ended + TOLERANCE_SECONDS for row in finished)
    assert {row["time_source"] for row in rows} == {"stamp"}
    assert max(row["other_requests"] for row in finished) == 3
    assert run == {"server": f"127.0.0.1:{server.port}", "model": tiny_model.stem, "is_known": 1}
    # What was generated for clients that left is counted by the server (from b10809 on), and in no row.
    generated = sum(row["generated_tokens"] for row in finished)
    assert generated <= counters["tokens_predicted_total"] <= generated + CANCELS * 400


def test_each_answer_of_a_router_is_a_row_of_its_model(
    program: Path, tiny_model: Path, tmp_path: Path
) -> None:
    models, log = tmp_path / "models", tmp_path / "router.log"
    models.mkdir()
    for name in ("alpha", "beta"):
        (models / f"{name}.gguf").write_bytes(tiny_model.read_bytes())
    with (
        LlamaRouter(program, models, log) as router,
        collector_of(router.url, log, tmp_path) as collector,
    ):
        calls = {
            model: [complete(router.url, number, model) for number in range(CALLS)]
            for model in ("alpha", "beta")
        }
        rows = wait_for_rows(collector, 2 * CALLS)
        collector.wait_for("SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM requests WHERE run_id IS NULL)", 60)
    for model, of_model in calls.items():
        assert facts_of_rows([row for row in rows if row["model"] == model]) == facts_of_calls(of_model)
    waits = [row["queue_ms"] for row in rows]
    assert all(0 <= wait < 30_000 for wait in waits)


def test_an_embedding_is_a_row_without_generation(program: Path, tiny_model: Path, tmp_path: Path) -> None:
    log = tmp_path / "llama.log"
    options = ("--metrics", "--embeddings", "--pooling", "mean", "--threads", "1")
    with (
        LlamaServer(tiny_model, options, log=log, program=program) as server,
        collector_of(server.url, log, tmp_path) as collector,
    ):
        sizes = []
        for number in range(1, 5):
            body = {"input": "a b c " * number}
            answer = httpx.post(f"{server.url}/v1/embeddings", json=body, timeout=120)
            sizes.append(answer.json()["usage"]["prompt_tokens"])
        rows = wait_for_rows(collector, len(sizes))
    assert [(row["outcome"], row["processed_tokens"], row["generated_tokens"]) for row in rows] == [
        ("no_generation", size, None) for size in sizes
    ]
