"""Datasette on the live file: everything is described, every query runs, and the collector is not disturbed.

`python -m tests.integration.test_datasette` writes the descriptions in config/datasette.yaml again.
"""

import html
import json
import re
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from collector.catalog import OWN_TABLES
from collector.database.connection import connect_read_only
from collector.database.documented import DOCUMENTED_TABLES
from collector.schema import Table, View
from collector.views import VIEWS
from tests.support.chromium import browse
from tests.support.datasette_server import OPTIONS, ROOT, DatasetteServer
from tests.support.recorded import collecting, wait_for_everything

CONFIGURATION = ROOT / "config" / "datasette.yaml"
DATABASE = "llama-dashboard"
DESCRIBED: tuple[Table | View, ...] = (*VIEWS, *DOCUMENTED_TABLES, *OWN_TABLES)
PLOT = r'role-mark[^>]*>(<g[^>]*>)*<path[^>]* d="M\S+'
"""A shape that Vega has drawn for a row."""
NUMBER = r"<p [^>]*>\d+</p>"
FACETS = {
    "models": ("type", "quantization", "status"),
    "logs": ("level", "source"),
    "gpu_metrics": ("gpu_index",),
    "llama_metrics": ("model",),
    "model_events": ("model", "event"),
    "model_files": ("verdict",),
    "speeds": ("model", "quantization"),
    "model_loads": ("model", "left_by"),
    "unused_models": ("quantization", "status"),
}


def descriptions() -> str:
    """Return YAML for every table and view; JSON strings are valid YAML."""
    lines = ["    tables:"]
    for described in DESCRIBED:
        lines += [f"      {described.name}:", *(f"        {line}" for line in _description(described))]
    return "\n".join(lines)


def _description(described: Table | View) -> list[str]:
    names = [column.name for column in described.columns]
    lines = [
        f"title: {described.name.replace('_', ' ').capitalize()}",
        f"description: {_quoted(described.meaning)}",
    ]
    if "timestamp" in names:
        lines.append("sort_desc: timestamp")
    if described.name in FACETS:
        lines.append(f"facets: [{', '.join(FACETS[described.name])}]")
    return [*lines, "columns:", *(f"  {c.name}: {_quoted(c.meaning)}" for c in described.columns)]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def written(text: str) -> str:
    opening = "    # tables: python -m tests.integration.test_datasette\n"
    return re.sub(
        f"{re.escape(opening)}.*?    # end",
        lambda _: f"{opening}{descriptions()}\n    # end",
        text,
        flags=re.DOTALL,
    )


@cache
def configuration() -> dict[str, Any]:
    return dict(yaml.safe_load(CONFIGURATION.read_text()))


def canned_queries() -> dict[str, str]:
    return {name: query["sql"] for name, query in configuration()["databases"][DATABASE]["queries"].items()}


def charts() -> dict[str, str]:
    (dashboard,) = configuration()["plugins"]["datasette-dashboards"].values()
    return {name: chart["query"] for name, chart in dashboard["charts"].items()}


def test_every_table_view_and_column_is_described_as_it_is_declared() -> None:
    assert CONFIGURATION.read_text() == written(CONFIGURATION.read_text()), (
        "run python -m tests.integration.test_datasette"
    )


@pytest.mark.parametrize("name", [*canned_queries(), *charts()])
def test_every_query_runs_with_and_without_its_number_of_days(recorded: Path, name: str) -> None:
    with closing(connect_read_only(recorded)) as reader:
        for days in ("", "1", "0.5"):
            reader.execute((canned_queries() | charts())[name], {"days": days}).fetchall()


@pytest.mark.parametrize("name", charts())
def test_every_chart_has_something_to_show(recorded: Path, name: str) -> None:
    with closing(connect_read_only(recorded)) as reader:
        rows = reader.execute(charts()[name], {"days": "1"}).fetchall()
    assert rows or name == "trouble"  # there need not be any


def test_every_view_is_used_in_a_query() -> None:
    used = " ".join([*canned_queries().values(), *charts().values()])
    assert [view.name for view in VIEWS if not re.search(rf"\b{view.name}\b", used)] == []


def test_no_chart_shows_text_from_outside_as_html() -> None:
    (dashboard,) = configuration()["plugins"]["datasette-dashboards"].values()
    assert {chart["library"] for chart in dashboard["charts"].values()} == {"vega-lite", "metric"}
    for name, chart in dashboard["charts"].items():
        if chart["library"] == "metric":
            assert not re.search(
                "model|name|message|source|level", chart["query"].replace("active_models", "")
            ), name


def test_every_page_answers_and_datasette_adds_nothing_to_the_file(recorded: Path) -> None:
    before = recorded.read_bytes()
    with DatasetteServer(recorded) as server:
        for described in DESCRIBED:
            page = server.get(f"/{DATABASE}/{described.name}")
            assert html.escape(described.meaning) in page.replace("&#39;", "&#x27;"), described.name
            assert all(column.name in page for column in described.columns)
        for query in canned_queries():
            server.get(f"/{DATABASE}/{query}?days=1")
    assert recorded.read_bytes() == before


def test_the_command_in_the_readme_starts_it_as_the_tests_do() -> None:
    (command,) = re.findall(
        r"^python3 -m venv .*datasette serve.*$", (ROOT / "data" / "README.md").read_text(), re.MULTILINE
    )
    assert f"datasette serve data/{DATABASE}.db {OPTIONS} --open" in command


@pytest.mark.slow
def test_a_browser_shows_rows_and_plots_and_the_collector_is_not_disturbed(
    tmp_path: Path, tiny_model: Path
) -> None:
    with collecting(tmp_path, tiny_model) as (collector, llama):
        wait_for_everything(collector, llama)
        with DatasetteServer(collector.database) as datasette:
            page = browse(f"{datasette.url}/-/dashboards/llama?days=0.01")
            assert page.console == ()
            for name in charts():
                card = page.html.split(f'id="chart-{name}"')[1].split('class="dashboard-card"')[0]
                assert re.search(PLOT if "<svg" in card else NUMBER, card) or name == "trouble", name
            for described in ("now", "tokens_by_hour", "logs", "llama_metrics"):
                page = browse(f"{datasette.url}/{DATABASE}/{described}")
                assert page.console == ()
                assert "<td" in page.html, described
        rows = collector.query("SELECT count(1) AS n FROM metrics")[0]["n"]
        collector.wait_for(f"SELECT count(1) AS n FROM metrics HAVING n > {rows + 2}")
        assert collector.query("SELECT * FROM collector_health WHERE failures > 0") == []
        assert collector.query("SELECT * FROM gaps") == []


if __name__ == "__main__":
    CONFIGURATION.write_text(written(CONFIGURATION.read_text()))
