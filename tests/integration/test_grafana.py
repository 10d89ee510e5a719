"""The Grafana dashboard: every query runs, after its macros are expanded as the SQLite data source does."""

import json
import re
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from collector.database.connection import connect_read_only
from tests.support.paths import ROOT

DASHBOARD: dict[str, Any] = json.loads((ROOT / "config" / "grafana-dashboard.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
SHOWN = [panel for panel in PANELS if panel["type"] != "row"]
QUIET = ("Times without samples", "Drafted tokens accepted", "Processor temperature")
"""Panels that are empty after a short time without faults or speculation, on a machine without sensors."""
TIME_SERIES = ("metrics", "logs", "host_metrics", "gpu_metrics", "llama_metrics")


def expanded(query: str, begin: int, end: int) -> str:
    """Expand variables, the time range in milliseconds, then macros, as Grafana and the data source do."""
    for variable in DASHBOARD["templating"]["list"]:
        query = query.replace(f"${variable['name']}", variable["current"].get("value", ""))
    query = query.replace("$__from", str(begin * 1000)).replace("$__to", str(end * 1000))
    return re.sub(r"\$__unixEpochGroupSeconds\(([^),]*),\s*(\d+)\)", r"cast((\1 / \2) as int) * \2", query)


def query_of(panel: dict[str, Any], begin: int = 0, end: int = 0) -> str:
    (target,) = panel["targets"]
    assert target["rawQueryText"] == target["queryText"]  # the editor shows what is run
    query = expanded(target["rawQueryText"], begin, end)
    assert "$" not in query
    return query


def titled(panel: dict[str, Any]) -> str:
    return str(panel["title"])


def test_there_is_a_row_each_for_host_gpu_models_requests_and_logs() -> None:
    assert [titled(panel) for panel in PANELS if panel["type"] == "row"] == [
        "Host", "GPU", "Models", "Requests in flight", "Logs",
    ]  # fmt: skip


def test_every_panel_has_its_own_position_and_number() -> None:
    positions = [
        (x, y)
        for panel in PANELS
        for at in [panel["gridPos"]]
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(positions) == len(set(positions))
    assert max(x for x, _ in positions) < 24
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)


def test_every_panel_queries_the_selected_database() -> None:
    assert DASHBOARD["templating"]["list"][0]["query"] == "frser-sqlite-datasource"
    for panel in SHOWN:
        chosen = {"type": "frser-sqlite-datasource", "uid": "${datasource}"}
        assert panel["datasource"] == panel["targets"][0]["datasource"] == chosen


@pytest.mark.parametrize("panel", SHOWN, ids=titled)
def test_a_query_runs_on_a_real_database(recorded: Path, panel: dict[str, Any]) -> None:
    now = int(time.time())
    with closing(connect_read_only(recorded)) as reader:
        cursor = reader.execute(query_of(panel, now - 86_400, now + 1))
        names, rows = [column[0] for column in cursor.description], cursor.fetchall()
    assert len(set(names)) == len(names)
    if titled(panel) not in QUIET:
        assert rows
    if panel["type"] == "timeseries":
        assert names[0] == panel["targets"][0]["timeColumns"][0] == "time"
        times = [row[0] for row in rows]
        assert times == sorted(times)  # the data source requires this order
        assert all(isinstance(moment, int) and now - 90_000 < moment <= now for moment in times)
        assert titled(panel) in QUIET or any(value is not None for row in rows for value in row[1:])


@pytest.mark.parametrize("panel", SHOWN, ids=titled)
def test_a_query_reads_only_the_rows_of_its_time_range(recorded: Path, panel: dict[str, Any]) -> None:
    with closing(connect_read_only(recorded)) as reader:
        steps = [row[3] for row in reader.execute(f"EXPLAIN QUERY PLAN {query_of(panel, 1000, 2000)}")]
        nothing = reader.execute(query_of(panel, 1000, 2000)).fetchall()
    scanned = {word for step in steps if step.startswith("SCAN") for word in step.split()}
    assert not scanned & set(TIME_SERIES), steps
    assert nothing == [] or titled(panel) == "Unused models"  # which has no time
