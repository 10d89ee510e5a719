"""Rows that a daemon could not write and the next one gets, after the database was replaced."""

from pathlib import Path

import pytest

from collector.daemon.daemon import Daemon
from collector.daemon.sampler import Sampler
from collector.database.buffer import Batch, Retention
from collector.settings import settings_from
from collector.sources.gpu.source import GPU_METRICS


def test_they_are_written_before_the_first_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first sample is compared with the newest stored row: their energy must not count twice."""
    path = tmp_path / "x.db"
    values = {"database": {"path": str(path)}, "llama_server": {"url": ""}, "gpu": {"enabled": False}}
    row = GPU_METRICS.row(
        {"timestamp": 1, "gpu_index": 0, "uuid": "GPU-1", "energy_joules": 5.0, "energy_used_joules": 5.0}
    )
    write = GPU_METRICS.insert(row)
    waiting = [Batch(write.statement, list(write.rows), Retention.DROPPABLE)]
    stored_at_tick: list[object] = []

    def tick(_sampler: Sampler) -> None:
        stored_at_tick.append(daemon._database.query("SELECT energy_joules FROM gpu_metrics"))

    monkeypatch.setattr(Sampler, "tick", tick)
    daemon = Daemon(settings_from(values), waiting=waiting)
    try:
        daemon.start()
    finally:
        daemon.stop()
    assert stored_at_tick[0] == [{"energy_joules": 5.0}]
