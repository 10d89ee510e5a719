"""A database with rows in every table, as the collector itself writes it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.collector import Collector
from tests.support.llama_server import LlamaServer, process_name
from tests.support.nvml_stub import NvmlStub


@contextmanager
def collecting(directory: Path, model: Path) -> Iterator[tuple[Collector, LlamaServer]]:
    """Run a collector that samples a real llama-server, its log and a stub of a GPU once a second."""
    log = directory / "llama-server.log"
    nvml = directory / "nvml"
    nvml.mkdir()
    with LlamaServer(model, log=log) as server:
        settings = (
            f'[sampling]\ninterval = 1\n[llama_server]\nurl = "{server.url}"\n'
            f'process_name = "{process_name(server.port)}"\n'
            f'[models]\ndirectory = "{model.parent}"\n[logs]\nfiles = ["{log}"]\n'
        )
        with Collector(directory, settings, {**os.environ, **NvmlStub(nvml).environment}) as collector:
            yield collector, server
            assert collector.stop() == 0


def wait_for_everything(collector: Collector, server: LlamaServer) -> None:
    """Send requests until every time series and every view over them has rows."""
    collector.wait_for("SELECT id FROM metrics LIMIT 1 OFFSET 2")
    while not collector.query("SELECT * FROM speeds WHERE generated_tokens_per_second > 0"):
        server.complete(tokens=240)
    collector.wait_for("SELECT * FROM gpu_by_hour WHERE energy_joules IS NOT NULL AND generated_tokens > 0")
    for table in ("host_metrics", "logs", "model_events", "model_files"):
        collector.wait_for(f"SELECT * FROM {table}")
    collector.wait_for("SELECT * FROM models WHERE file_size > 0")
