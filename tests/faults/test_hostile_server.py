"""A whole daemon with a server that returns arbitrary answers, and with one that is restarted repeatedly.

Each answer on its own is tested in tests/sources/llama/test_hostile_answers.py.
"""

import itertools
from pathlib import Path

import psutil
import pytest

from tests.sources.llama.test_hostile_answers import good
from tests.support.collector import Collector
from tests.support.hostile_answers import EVERYTHING, Pieces
from tests.support.llama_server import LlamaServer, free_port, process_name
from tests.support.odd_server import OddServer

pytestmark = pytest.mark.slow

RESTARTS = 4
REQUESTS = 12
"""Enough to be measurable in the processor time of such a small model."""

ODD_ANSWERS = [*list(EVERYTHING)[::5], "a million empty lists", "1 GB", "dripping headers", "silence"]
"""One a second, so not all."""

GROWTH_BYTES = 120 * 2**20
"""Growth of the daemon: a list of a million lists needs 70 MB for a moment, and the unit allows 256 MB."""


def settings(url: str, timeout: float) -> str:
    return (
        f'[sampling]\ninterval = 1\n[llama_server]\nurl = "{url}"\ntimeout = {timeout}\n'
        f'process_name = "{process_name(int(url.rsplit(":", 1)[1]))}"\n[models]\ndirectory = "no/models"\n'
    )


def process_of(collector: Collector) -> psutil.Process:
    assert collector.process
    return psutil.Process(collector.process.pid)


def logged_states(collector: Collector) -> list[str]:
    rows = collector.query("SELECT message FROM logs WHERE message LIKE 'llama_server: %' ORDER BY id")
    return [row["message"].split(":")[1].strip() for row in rows]


def test_odd_answers_delay_no_other_source_and_cause_no_invented_value(tmp_path: Path) -> None:
    names = iter(ODD_ANSWERS)
    is_over = False

    def one_after_another(path: str) -> Pieces:
        nonlocal is_over
        name = next(names, None)
        is_over = is_over or name is None
        return EVERYTHING[name].pieces() if name else good(path)

    with OddServer(one_after_another) as server, Collector(tmp_path, settings(server.url, 0.3)) as collector:
        collector.wait_for("SELECT * FROM metrics")
        before = process_of(collector).memory_info().rss
        collector.wait_for("SELECT * FROM llama_metrics WHERE tokens_predicted_total = 64", seconds=80)
        assert is_over
        assert process_of(collector).memory_info().rss - before < GROWTH_BYTES
        assert collector.stop() == 0
    (first,) = collector.query("SELECT min(timestamp) AS second FROM llama_metrics")
    during = f"WHERE timestamp < {first['second']}"
    seconds = [row["timestamp"] for row in collector.query(f"SELECT timestamp FROM host_metrics {during}")]
    assert len(seconds) >= 5
    assert max(after - before for before, after in itertools.pairwise(seconds)) <= 2  # seconds, rounded
    assert collector.query(f"SELECT * FROM metrics {during} AND active_models IS NOT NULL") == []
    (longest,) = collector.query("SELECT max(length(message)) AS characters FROM logs")
    assert longest["characters"] < 700


def test_restarts_of_a_real_server_are_logged_once_per_change_and_leak_nothing(
    tmp_path: Path, tiny_model: Path
) -> None:
    port = free_port()
    used = []
    with Collector(tmp_path, settings(f"http://127.0.0.1:{port}", 5)) as collector:
        collector.wait_for("SELECT * FROM metrics")
        for number in range(RESTARTS):
            with LlamaServer(tiny_model, port=port) as server:
                tokens = 240 + number
                for _ in range(REQUESTS):
                    server.complete(tokens)
                collector.wait_for(
                    f"SELECT * FROM llama_metrics WHERE tokens_predicted_total = {REQUESTS * tokens}"
                )
                process = process_of(collector)
                used.append((process.num_fds(), process.num_threads()))
            collector.wait_for(
                "SELECT * FROM collector_health WHERE name = 'llama_server' AND state = 'down'"
            )
            newest = collector.wait_for("SELECT active_models FROM metrics ORDER BY id DESC LIMIT 1")
            assert newest == [{"active_models": 0}]
        assert collector.stop() == 0
    logged = [state for state in logged_states(collector) if state != "loading"]
    assert logged == ["down", *["up", "down"] * RESTARTS]
    assert used[-1][0] <= used[1][0] + 2  # a flush or a scan may have a file open at the moment
    assert used[-1][1] <= used[1][1] + 1
