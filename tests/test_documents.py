"""The documents are correct: their lists are those of the code, their commands and examples work.

`python -m tests.test_documents` writes the generated lists again.
"""

import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import MISSING, fields
from importlib.util import find_spec
from pathlib import Path

import duckdb
import pytest

from collector.catalog import OWN_TABLES
from collector.cli import main
from collector.database import Database
from collector.database.documented import DOCUMENTED_TABLES
from collector.settings import Settings, load_settings
from collector.views import VIEWS
from tests.support.collector import Collector
from tests.support.paths import ROOT

README = ROOT / "README.md"
CONFIG_README, DATA_README = ROOT / "config" / "README.md", ROOT / "data" / "README.md"
FOLDERS = ("collector", "config", "data", "systemd", "tests")
DOCUMENTS = (README, *sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("README.md")))
README_MAX_BYTES = 12_000


def settings_list() -> str:
    """Return the table of all settings."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for section in fields(Settings):
        for setting in fields(section.default_factory):  # type: ignore[arg-type]
            default = setting.default if setting.default_factory is MISSING else setting.default_factory()
            shown = str(default).lower() if isinstance(default, bool) else repr(default).replace("'", '"')
            lines.append(f"| `[{section.name}] {setting.name}` | `{shown}` | {setting.metadata['meaning']} |")
    return "\n".join(lines)


def tables_list() -> str:
    """Return a section for each table, with its columns."""
    lines = []
    for table in (*DOCUMENTED_TABLES, *OWN_TABLES):
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
    """Return a section for each view, with its columns."""
    lines = []
    for view in VIEWS:
        lines += [f"### `{view.name}`", "", view.meaning, "", "| column | meaning |", "|---|---|"]
        lines += [f"| `{column.name}` | {column.meaning} |" for column in view.columns]
        lines.append("")
    return "\n".join(lines)


LISTS = {"settings": settings_list, "tables": tables_list, "views": views_list}


def with_lists(text: str) -> str:
    """Return a document with each list between its markers generated from the code."""
    for name, generate in LISTS.items():
        opening = _opening_marker(name)
        text = re.sub(
            f"{re.escape(opening)}.*?<!-- end -->",
            lambda _, opening=opening, generate=generate: f"{opening}{generate()}\n<!-- end -->",  # type: ignore[misc]
            text,
            flags=re.DOTALL,
        )
    return text


def _opening_marker(name: str) -> str:
    return f"<!-- {name}: python -m tests.test_documents -->\n"


def code_blocks(document: Path, language: str) -> list[str]:
    """Return the code blocks of one language in a document."""
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), re.DOTALL | re.MULTILINE)


def all_blocks(language: str) -> list[object]:
    """Return the code blocks of one language in all documents, as test parameters."""
    return [
        pytest.param(block, id=f"{document.relative_to(ROOT)}-{number}")
        for document in DOCUMENTS
        for number, block in enumerate(code_blocks(document, language), 1)
    ]


def sqlite3_commands() -> list[str]:
    """Return the lines of all documents that call the sqlite3 shell."""
    return [
        line
        for document in DOCUMENTS
        for block in code_blocks(document, "sh")
        for line in block.splitlines()
        if line.startswith("sqlite3 ")
    ]


def links() -> list[tuple[Path, str]]:
    """Return each link of all documents, with the document that contains it."""
    return [
        (document, target)
        for document in DOCUMENTS
        for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text())
    ]


def anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub creates for the headings of a document."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


class TestLists:
    @pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
    def test_a_generated_list_equals_the_code(self, document: Path) -> None:
        text = document.read_text()
        assert text == with_lists(text), "run python -m tests.test_documents"

    @pytest.mark.parametrize("name", LISTS)
    def test_each_list_is_in_one_document(self, name: str) -> None:
        assert sum(_opening_marker(name) in document.read_text() for document in DOCUMENTS) == 1

    def test_every_command_is_documented_and_no_other(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            main(["--help"])
        printed = capsys.readouterr().out.partition("commands:")[2].partition("examples:")[0]
        commands = re.findall(r"^    (\w+)", printed, re.MULTILINE)
        assert len(commands) >= 10
        documented = re.findall(r"^\| `llama-collector (\w+)", README.read_text(), re.MULTILINE)
        assert set(documented) == set(commands)

    def test_every_state_of_llama_server_is_explained(self) -> None:
        files = (ROOT / "collector" / "sources" / "llama").glob("*.py")
        source = "".join(file.read_text() for file in files)
        states = set(re.findall(r'(?:_disconnected|State)\(\s*"([a-z ]+)"', source))
        assert len(states) >= 8
        (table,) = re.findall(r"^\| state \| meaning \| what to do \|\n((?:\|.*\n)+)", CONFIG_README.read_text(), re.MULTILINE)  # fmt: skip
        documented = set(re.findall(r"^\| `([a-z ]+)` \|", table, re.MULTILINE))
        assert states <= documented

    def test_every_repository_method_in_the_documents_exists(self, tmp_path: Path) -> None:
        (table,) = re.findall(r"^\| repository .*\n\|---\|---\|\n((?:\|.*\n)+)", DATA_README.read_text(), re.MULTILINE)  # fmt: skip
        with Database(tmp_path / "new.db") as database:
            for line in table.splitlines():
                repository, *methods = re.findall(r"`(\w+)`", line)
                assert methods
                for method in methods:
                    assert callable(getattr(getattr(database, repository), method))


class TestLinks:
    @pytest.mark.parametrize(
        ("document", "target"), [pytest.param(d, t, id=f"{d.relative_to(ROOT)}-{t}") for d, t in links()]
    )
    def test_a_link_is_relative_and_leads_to_a_file_and_a_heading(self, document: Path, target: str) -> None:
        if re.match("https?://", target):
            return
        path, _, anchor = target.partition("#")
        assert not path.startswith("/")
        file = (document.parent / path).resolve() if path else document
        assert file.is_relative_to(ROOT)
        assert file.exists()
        if anchor:
            assert anchor in anchors(file)

    def test_the_readme_links_every_other_readme_of_a_folder(self) -> None:
        targets = {target.partition("#")[0] for document, target in links() if document == README}
        assert {f"{folder}/README.md" for folder in FOLDERS} <= targets

    @pytest.mark.parametrize(
        "path",
        sorted(
            {
                path
                for document in DOCUMENTS
                for path in re.findall(
                    r"`((?:collector|config|systemd|tests)/[\w/.-]+\.\w+)`", document.read_text()
                )
            }
        ),
    )
    def test_every_file_that_a_document_names_exists(self, path: str) -> None:
        assert (ROOT / path).is_file()

    def test_the_readme_is_short(self) -> None:
        assert README.stat().st_size <= README_MAX_BYTES, "describe it in the README of its folder"


def test_the_test_command_is_the_one_that_ci_runs() -> None:
    (command,) = [block for block in code_blocks(README, "sh") if "pytest" in block]
    assert "README.md" in (ROOT / ".ci" / "run").read_text()
    assert "requirements.txt" in command


@pytest.fixture(scope="module")
def used_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which a collector has run."""
    directory = tmp_path_factory.mktemp("documents")
    with Collector(directory, '[llama_server]\nurl = ""\n') as collector:
        collector.wait_for("SELECT * FROM metrics")
        assert collector.stop() == 0
    return directory


class TestExamples:
    @pytest.mark.parametrize("block", all_blocks("python"))
    def test_every_python_example_runs(self, used_directory: Path, block: str) -> None:
        ended = subprocess.run(
            [sys.executable, "-c", block],
            cwd=used_directory,
            capture_output=True,
            text=True,
            check=False,
            env=environment_with_duckdb_extension(used_directory),
        )
        assert (ended.returncode, ended.stderr) == (0, "")

    @pytest.mark.parametrize("line", sqlite3_commands())
    def test_every_query_for_the_shell_runs(
        self, used_directory: Path, line: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(used_directory)
        *_, database, query = shlex.split(line)
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            rows = connection.execute(query).fetchall()
        assert len(rows) == query.count("FROM now")
        copy = used_directory / "copy-of-llama-dashboard.db"
        assert copy.exists() == ("VACUUM" in query)
        copy.unlink(missing_ok=True)

    @pytest.mark.parametrize("block", all_blocks("toml"))
    def test_every_example_of_settings_is_valid(self, tmp_path: Path, block: str) -> None:
        file = tmp_path / "collector.toml"
        file.write_text(block)
        assert load_settings(file) != Settings()


def environment_with_duckdb_extension(home: Path) -> dict[str, str]:
    """Return an environment in whose home DuckDB finds the extension that it would download."""
    package = find_spec("duckdb_extension_sqlite_scanner")
    assert package
    assert package.origin
    (extension,) = Path(package.origin).parent.rglob("*.duckdb_extension")
    (platform,) = duckdb.sql("PRAGMA platform").fetchone() or ()
    directory = home / ".duckdb" / "extensions" / extension.parent.name / platform
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copy(extension, directory)
    return {**os.environ, "HOME": str(home)}


@pytest.mark.slow
def test_the_first_command_of_the_readme_sets_up_and_runs_the_collector(tmp_path: Path) -> None:
    """In a new clone, as a new user would."""
    subprocess.run(["git", "clone", "-q", ROOT, tmp_path / "clone"], check=True)
    command = next(block for block in code_blocks(README, "sh") if "llama-collector run" in block)
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
    for path in DOCUMENTS:
        path.write_text(with_lists(path.read_text()))
