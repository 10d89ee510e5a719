import json
import time
from pathlib import Path
from typing import Any

import pytest

from collector.catalog import open_database
from collector.cli import main
from collector.logs.rows.requests import REQUESTS

NOW = int(time.time())


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """Return the settings of a database with four requests, one of them a day old."""
    common: dict[str, Any] = {
        "time_source": "stamp",
        "prompt_tokens": 1200,
        "processed_tokens": 200,
        "cached_tokens": 1000,
    }
    rows: list[dict[str, Any]] = [
        {"task": 1, "timestamp": NOW - 90_000, "outcome": "finished", "model": "old", "total_ms": 5.0},
        {"task": 2, "timestamp": NOW - 30, "outcome": "finished", "model": "a", "total_ms": 25_000.0, "prompt_ms": 1500.0, "generation_ms": 10_000.0, "generated_tokens": 201, "other_requests": 1},
        {"task": 3, "timestamp": NOW - 20, "outcome": "error", "model": "a", "error": "too \x1b[31mlong"},
        {"task": 4, "timestamp": NOW - 10, "outcome": "finished", "model": "b", "total_ms": 100.0, "generated_tokens": 1, "generation_ms": 0.0},
    ]  # fmt: skip
    with open_database(tmp_path / "d.db") as database, database.transaction() as connection:
        connection.executemany(REQUESTS.insert_statement, [REQUESTS.row(common | row) for row in rows])
    file = tmp_path / "collector.toml"
    file.write_text(f'[database]\npath = "{tmp_path}/d.db"\n')
    return file


def shown(settings: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["--config", str(settings), "requests", *arguments]) == 0
    return capsys.readouterr().out


def test_the_requests_of_the_last_hour_are_a_table(
    settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heading, first, second, error, third = shown(settings, capsys).splitlines()
    assert heading.split()[:3] == ["ended", "model", "outcome"]
    assert first.split()[2:] == [
        "a",
        "finished",
        "-",
        "1.50",
        "s",
        "25.00",
        "s",
        "1,200",
        "1,000",
        "201",
        "20.0",
        "1",
    ]
    assert second.split()[2:4] == ["a", "error"]
    assert error == "    too \N{REPLACEMENT CHARACTER}[31mlong"
    assert third.split()[-2:] == ["-", "-"], "one token has no speed"


@pytest.mark.parametrize(
    ("arguments", "tasks"),
    [
        ((), [2, 3, 4]),
        (("--since", "2d"), [1, 2, 3, 4]),
        (("--model", "b"), [4]),
        (("--slow",), [3, 4, 2]),
        (("--slow", "--limit", "1"), [2]),
        (("--failed", "--since", "1w"), [3]),
        (("--limit", "2"), [3, 4]),
        (("--since", "2d", "--model", "none"), []),
    ],
)
def test_options_choose_requests(
    settings: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], tasks: list[int]
) -> None:
    lines = shown(settings, capsys, *arguments, "--json").splitlines()
    assert [json.loads(line)["task"] for line in lines] == tasks


def test_without_requests_it_says_what_to_check(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "llama-collector check" in shown(settings, capsys, "--model", "none")


def test_a_database_of_an_older_version_has_no_requests(
    tmp_path: Path, settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_database(tmp_path / "d.db") as database:
        database.run_script("DROP TABLE requests")
    assert "no request" in shown(settings, capsys)
