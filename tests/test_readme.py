"""README is true: its lists are those of the code, its commands work.

`python -m tests.test_readme` writes the lists anew.
"""

import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import MISSING, fields
from importlib.util import find_spec
from pathlib import Path

import duckdb
import pytest

from collector.catalog import OWN_TABLES
from collector.cli import build_parser
from collector.database.documented import DOCUMENTED_TABLES
from collector.settings import Settings
from collector.views import VIEWS
from tests.support.collector import Collector

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TABLES = (*DOCUMENTED_TABLES, *OWN_TABLES)


def settings_list() -> str:
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for section in fields(Settings):
        for setting in fields(section.default_factory):  # type: ignore[arg-type]
            default = setting.default if setting.default_factory is MISSING else setting.default_factory()
            shown = str(default).lower() if isinstance(default, bool) else repr(default).replace("'", '"')
            lines.append(f"| `[{section.name}] {setting.name}` | `{shown}` | {setting.metadata['meaning']} |")
    return "\n".join(lines)


def tables_list() -> str:
    lines = []
    for table in TABLES:
        lines += [
            f"### `{table.name}`",
            "",
            table.meaning,
            "",
            "| column | type | meaning |",
            "|---|---|---|",
        ]
        lines += [f"| `{c.name}` | {c.declaration.split()[0]} | {c.meaning} |" for c in table.columns]
        lines.append("")
    return "\n".join(lines)


def views_list() -> str:
    lines = []
    for view in VIEWS:
        lines += [f"### `{view.name}`", "", view.meaning, "", "| column | meaning |", "|---|---|"]
        lines += [f"| `{column.name}` | {column.meaning} |" for column in view.columns]
        lines.append("")
    return "\n".join(lines)


LISTS = {"settings": settings_list, "tables": tables_list, "views": views_list}


def written(text: str) -> str:
    for name, make in LISTS.items():
        opening = f"<!-- {name}: python -m tests.test_readme -->\n"
        text = re.sub(
            f"{re.escape(opening)}.*?<!-- end -->",
            lambda _, opening=opening, make=make: f"{opening}{make()}\n<!-- end -->",  # type: ignore[misc]
            text,
            flags=re.DOTALL,
        )
    return text


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_lists_of_settings_tables_and_views_are_those_of_the_code() -> None:
    assert README.read_text() == written(README.read_text()), "run python -m tests.test_readme"


def test_every_command_stands_in_the_readme_and_no_other() -> None:
    choices = next(
        action.choices for action in build_parser()._actions if action.dest == "command" or action.choices
    )
    assert choices
    documented = set(re.findall(r"^\| `llama-collector (\w+)", README.read_text(), re.MULTILINE))
    assert documented == set(choices)


def test_every_state_of_llama_server_is_explained() -> None:
    files = (ROOT / "collector" / "sources" / "llama").glob("*.py")
    source = "".join(file.read_text() for file in files)
    told = set(re.findall(r'(?:_away|State)\(\s*"([a-z ]+)"', source))
    assert len(told) >= 8
    documented = set(re.findall(r"^\| `([a-z ]+)` \|", README.read_text(), re.MULTILINE))
    assert told <= documented


def test_the_test_command_is_the_one_that_ci_runs() -> None:
    (command,) = [block for block in code_blocks("sh") if "pytest" in block]
    assert "README.md" in (ROOT / ".ci" / "run").read_text()
    assert "requirements.txt" in command


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("readme")
    with Collector(directory, '[llama_server]\nurl = ""\n') as collector:
        collector.wait_for("SELECT * FROM metrics")
        assert collector.stop() == 0
    return directory


def with_readers(home: Path) -> dict[str, str]:
    """An environment in whose home DuckDB finds the extension that it would download."""
    package = find_spec("duckdb_extension_sqlite_scanner")
    assert package
    assert package.origin
    (extension,) = Path(package.origin).parent.rglob("*.duckdb_extension")
    (platform,) = duckdb.sql("PRAGMA platform").fetchone() or ()
    place = home / ".duckdb" / "extensions" / extension.parent.name / platform
    place.mkdir(parents=True, exist_ok=True)
    shutil.copy(extension, place)
    return {**os.environ, "HOME": str(home)}


@pytest.mark.parametrize("block", code_blocks("python"))
def test_every_python_example_runs(filled: Path, block: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", block],
        cwd=filled,
        capture_output=True,
        text=True,
        check=False,
        env=with_readers(filled),
    )
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize(
    "line",
    [line for block in code_blocks("sh") for line in block.splitlines() if line.startswith("sqlite3 ")],
)
def test_every_query_for_the_shell_runs(filled: Path, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(filled)
    *_, database, query = shlex.split(line)
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        rows = connection.execute(query).fetchall()
    assert len(rows) == query.count("FROM now")
    assert (filled / "copy-of-llama-dashboard.db").exists() == ("VACUUM" in query)


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`((?:collector|config|tests)/[\w/.]+\.\w+)`", README.read_text())))
)
def test_every_file_that_the_readme_names_is_there(path: str) -> None:
    assert (ROOT / path).is_file()


@pytest.mark.slow
def test_the_first_command_of_the_readme_sets_up_and_runs_the_collector(tmp_path: Path) -> None:
    """In a fresh clone, as a newcomer would."""
    import signal
    import time

    subprocess.run(["git", "clone", "-q", ROOT, tmp_path / "clone"], check=True)
    command = next(block for block in code_blocks("sh") if "llama-collector run" in block)
    process = subprocess.Popen(
        ["bash", "-c", f"exec 2>&1; {command.strip()}"], cwd=tmp_path / "clone", stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    database = tmp_path / "clone" / "data" / "llama-dashboard.db"
    deadline = time.monotonic() + 100
    while not database.exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    time.sleep(2)
    subprocess.run(["pkill", "-TERM", "-s", str(process.pid), "-f", "llama-collector run"], check=False)
    output, _ = process.communicate(timeout=20)
    assert "collector: stopped" in output, (signal.SIGTERM, output)


if __name__ == "__main__":
    README.write_text(written(README.read_text()))
