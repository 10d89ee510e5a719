"""The documented dashboard, in JavaScript with the documented driver, beside a running collector.

tests/javascript/dashboard.js is written from the documentation of the database alone.
"""

import json
import os
import re
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from collector.catalog import OWN_TABLES
from collector.database import Database
from collector.views import VIEWS
from tests.support.paths import ROOT
from tests.support.recorded import collecting, wait_for_everything

READER = ROOT / "tests" / "javascript"
QUERIES = ROOT / "tests" / "database" / "documented_queries.sql"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader with its driver, which npm compiles where there is no binary for this Node."""
    node = shutil.which("node")
    assert node and shutil.which("npm"), "install Node.js 20 or newer, with npm and its headers"  # noqa: PT018
    directory = tmp_path_factory.mktemp("javascript") / "reader"
    shutil.copytree(READER, directory)
    prefix = Path(node).resolve().parents[1]
    headers = {"npm_config_nodedir": str(prefix)} if (prefix / "include" / "node" / "node.h").exists() else {}
    subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund"],
        cwd=directory,
        env={**os.environ, **headers},
        check=True,
        timeout=600,
    )
    return directory / "dashboard.js"


def answers(reader: Path, *arguments: str | Path) -> dict[str, Any]:
    ended = subprocess.run(
        ["node", str(reader), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return dict(json.loads(ended.stdout))


@pytest.mark.timeout(900)
def test_every_documented_call_that_reads_works_on_the_live_file_and_does_not_disturb_the_collector(
    reader: Path, tmp_path: Path, tiny_model: Path
) -> None:
    with collecting(tmp_path, tiny_model) as (collector, server):
        wait_for_everything(collector, server)
        printed = answers(reader, "read", collector.database, QUERIES)
        (model,) = collector.query("SELECT * FROM models ORDER BY created_at DESC")
        latest = printed["metrics"]["getLatest"]
        assert collector.query(f"SELECT * FROM metrics WHERE id = {latest['id']}") == [latest]
        lines = collector.query(f"SELECT * FROM logs WHERE id = {printed['logs']['getAll'][0]['id']}")
        for _ in range(5):
            answers(reader, "read", collector.database, QUERIES)
        rows = collector.query("SELECT max(id) AS id FROM metrics")[0]["id"]
        collector.wait_for(f"SELECT id FROM metrics WHERE id > {rows + 2}")
        assert collector.query("SELECT * FROM collector_health WHERE failures > 0") == []
        assert collector.query("SELECT * FROM gaps") == []
    assert printed["models"] == {"getAll": [model], "getById": model, "getFavorites": [], "missing": None}
    assert printed["models"]["getById"]["status"] == "loaded"
    history = [row["timestamp"] for row in printed["metrics"]["getHistory"]]
    assert history == sorted(history, reverse=True)
    assert len(history) == 3
    assert lines == printed["logs"]["getAll"][:1]
    assert (printed["config"]["get"]["port"], printed["config"]["get"]["llama_server_metrics"]) == (
        8080,
        True,
    )
    assert printed["meta"]["missing"] == {"theme": "dark"}
    assert len(printed["queries"]) == 13


@pytest.mark.timeout(900)
def test_every_documented_call_that_writes_works_and_the_collector_reads_the_result(
    reader: Path, tmp_path: Path, recorded: Path
) -> None:
    copy = tmp_path / "copy.db"
    with closing(sqlite3.connect(f"file:{recorded}?mode=ro", uri=True)) as connection:
        connection.execute("VACUUM INTO ?", (str(copy),))
    printed = answers(reader, "write", copy)
    saved, updated = printed["saved"], printed["updated"]
    assert saved["id"].startswith("model_")
    assert (saved["type"], saved["ctx_size"], saved["threads"], saved["favorite"]) == ("llama", 4096, 4, 0)
    assert (printed["replaced"]["id"], printed["replaced"]["quantization"]) == (saved["id"], "Q4_K_M")
    assert (updated["status"], updated["favorite"], updated["quantization"]) == ("loaded", 1, "Q4_K_M")
    assert printed["notUpdated"] == [None, None]
    assert printed["favorites"] == [saved["id"]]
    assert (printed["cleaned"], printed["deleted"]) == (1, [True, False])
    assert (
        printed["latest"]["cpu_usage"],
        printed["latest"]["uptime"],
        printed["latest"]["active_models"],
    ) == (
        45.5,
        0,
        2,
    )
    assert printed["latest"]["timestamp"] > 1_700_000_000
    assert printed["pruned"] == [0, 2, 2]
    assert printed["cleared"] == printed["logs"] > 0
    with Database(copy, OWN_TABLES, VIEWS) as database:
        kept = database.models.get_by_id(printed["kept"])
        assert kept
        assert (kept["name"], json.loads(kept["parameters"])) == ("kept", {"temperature": 0.7})
        assert len(database.metrics.get_history()) == 2
        assert [line["message"] for line in database.logs.get_all()] == ["said by JavaScript"]
        assert database.config.get() == printed["config"] | {"port": 9090}
        assert (
            database.meta.get("userPreferences")
            == printed["preferences"]
            == {"theme": "dark", "language": "en"}
        )


@pytest.mark.timeout(900)
def test_the_example_in_the_documents_runs(reader: Path, tmp_path: Path, recorded: Path) -> None:
    (example,) = re.findall(
        r"^```js\n(.*?)^```$", (ROOT / "data" / "README.md").read_text(), re.DOTALL | re.MULTILINE
    )
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "llama-dashboard.db").symlink_to(recorded)
    ended = subprocess.run(
        ["node", "-e", example],
        cwd=tmp_path,
        env={**os.environ, "NODE_PATH": str(reader.parent / "node_modules")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "age_seconds" in ended.stdout
