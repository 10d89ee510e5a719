"""The scan of models directories by the daemon and by the command `scan`."""

import json
import shutil
from pathlib import Path

from tests.support.collector import Collector
from tests.support.llama_server import LlamaServer, process_name

NO_SERVER = '[llama_server]\nurl = ""\n[gpu]\nenabled = false\n'


def settings_for(models: Path) -> str:
    return f'{NO_SERVER}[models]\ndirectory = "{models}"\n'


def test_the_daemon_scans_soon_after_its_start(tmp_path: Path, tiny_model: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    shutil.copy2(tiny_model, models / "tiny.gguf")
    with Collector(tmp_path, settings_for(models)) as collector:
        (row,) = collector.wait_for("SELECT * FROM models")
        collector.wait_for("SELECT * FROM collector_health WHERE name = 'scan' AND state = 'ok'")
        assert collector.process
        memory_map = Path(f"/proc/{collector.process.pid}/maps").read_text()
        assert collector.stop() == 0
    assert (row["name"], row["type"], row["quantization"]) == ("tiny", "llama", "F32")
    assert (row["embedding_size"], row["block_count"], row["head_count"], row["head_count_kv"]) == (
        64,
        2,
        4,
        2,
    )
    assert (row["ctx_size"], row["ffn_dim"]) == (256, 128)
    assert row["file_size"] == (models / "tiny.gguf").stat().st_size
    assert json.loads(row["params"])["hidden_size"] == 64
    assert "numpy" not in memory_map


def test_a_model_that_is_scanned_and_served_has_one_row(tmp_path: Path, tiny_model: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    shutil.copy2(tiny_model, models / "tiny.gguf")
    with LlamaServer(models / "tiny.gguf") as server:
        settings = f'[sampling]\ninterval = 1\n[llama_server]\nurl = "{server.url}"\nprocess_name = "{process_name(server.port)}"\n[models]\ndirectory = "{models}"\n'
        with Collector(tmp_path, settings) as collector:
            collector.wait_for("SELECT * FROM models WHERE status = 'loaded' AND embedding_size = 64")
            assert len(collector.query("SELECT * FROM models")) == 1
            assert collector.stop() == 0


def test_the_command_scans_and_prints_what_it_found(tmp_path: Path, tiny_model: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    shutil.copy2(tiny_model, models / "tiny.gguf")
    (models / "broken.gguf").write_text("this is not a model")
    collector = Collector(tmp_path, settings_for(models))
    first, second = collector.call("scan"), collector.call("scan")
    assert (first.returncode, second.returncode) == (0, 0)
    assert first.stdout.startswith("1 models: 1 new, 0 changed, 0 removed; 1 unreadable files")
    assert second.stdout.startswith("1 models: 0 new, 0 changed, 0 removed")
    (event,) = collector.query("SELECT * FROM logs WHERE message LIKE '%broken.gguf%'")
    assert event["source"] == "collector"


def test_the_command_refuses_while_a_collector_runs(tmp_path: Path) -> None:
    with Collector(tmp_path, settings_for(tmp_path)) as collector:
        collector.wait_for("SELECT * FROM metrics")
        refused = collector.call("scan")
    assert refused.returncode == 1
    assert "It scans every 300 s by itself" in refused.stderr
