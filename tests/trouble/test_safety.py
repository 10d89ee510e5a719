"""Text and files from outside harm neither a terminal nor a secret."""

import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from collector.commands import install
from collector.errors import CollectorError
from collector.parsers.log.lines import parse_records
from tests.support.collector import Collector

ESCAPE = "\x1b]0;owned\x07\x1b[2J\x9b31m"
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Return a directory with logs and models whose names contain escape sequences and foreign bytes."""
    directory = tmp_path / "hostile"
    directory.mkdir()
    for name in (f"a{ESCAPE}.log".encode(), b"b\xff\xfe.log"):
        Path(os.fsdecode(os.fsencode(directory) + b"/" + name)).write_text("0.00.001.000 E srv: error: x\n")
    (directory / f"m{ESCAPE}.gguf").write_bytes(b"GGUF of no kind")
    (directory / f"link{ESCAPE}.log").symlink_to("/etc/shadow")
    return directory


def settings_of(hostile: Path, database: Path) -> str:
    return (
        f'[database]\npath = "{database}"\n[logs]\nfiles = ["{hostile}/*.log"]\n'
        f'[models]\ndirectory = "{hostile}"\n[llama_server]\nurl = ""\n[gpu]\nenabled = false\n'
    )


def test_no_escape_sequence_of_a_file_name_or_a_log_line_reaches_a_terminal(
    hostile: Path, tmp_path: Path
) -> None:
    database = tmp_path / "data" / "d.db"
    log = hostile / "plain.log"
    log.write_text(f"0.00.001.000 E srv: error: {ESCAPE}\n")
    with Collector(tmp_path, settings_of(hostile, database)) as collector:
        collector.database = database
        collector.wait_for("SELECT * FROM logs WHERE message LIKE 'srv: error%'")
        collector.wait_for("SELECT * FROM metrics")
        assert collector.stop() == 0
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(
            "INSERT INTO logs (timestamp, level, source, message) VALUES (unixepoch(), ?, ?, ?)",
            (f"error{ESCAPE}", f"server{ESCAPE}", f"text{ESCAPE}"),
        )
        connection.execute("UPDATE collector_health SET message = ?, state = ?", (ESCAPE, f"bad{ESCAPE}"))
        connection.execute(
            "INSERT OR REPLACE INTO metadata (key, value, updated_at) VALUES ('lastBackup', ?, 0)",
            ('{"file": "/x\\u001b[2J\\u009b.db", "time": 1, "bytes": 5}',),
        )
    assert CONTROL.findall(collector.output) == []
    for command in ("check", "status", "scan", "backup"):
        ended = collector.call(command)
        assert CONTROL.findall(ended.stdout + ended.stderr) == [], command
        assert "owned" in ended.stdout + ended.stderr or command in ("scan", "backup"), command


def test_a_command_prints_a_path_that_is_not_utf8(tmp_path: Path) -> None:
    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\x1b[2J.toml"))
    ended = subprocess.run(
        [sys.executable, "-m", "collector", "--config", os.fsencode(strange), "status"],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    assert ended.returncode == 78
    assert b"Traceback" not in ended.stderr
    assert b"\x1b" not in ended.stderr


# Keys


def masked(*lines: str) -> str:
    """Return the messages of consecutive lines as they are stored."""
    return "\n".join(record.message for record in parse_records(list(lines)))


KEY_LINES: Sequence[tuple[str, ...]] = (
    ("srv load:   --api-key", "[40463] srv child: its own line", "srv load:   SECRET"),
    ("srv load:   --api-key", "[40463] a", "[40464] b", "srv load:   SECRET"),
    ("args: ['llama-server', '--api-key', 'SECRET', '--port', '1']",),
    ('args: ["llama-server", "--api-key", "SECRET", "--port", "1"]',),
    (r'{"cmd": "[\"--api-key\", \"SECRET\"]"}',),
    ("--api-key 'SECRET with words'",),
    ('--api-key "SECRET, SECRET2" --port 1',),
    ("--api-key=SECRET",),
    ("--api-key SECRET,SECRET2",),
    ("--api-key\tSECRET",),
    ("-hft 'SECRET'",),
    ("environment: HF_TOKEN=SECRET LLAMA_API_KEY=SECRET",),
    ('environment: {"HF_TOKEN": "SECRET"}',),
    ("curl -H 'Authorization: Bearer SECRET' http://x",),
    ("proxy https://user:SECRET@host/v1",),
    ("AUTHORIZATION: BEARER SECRET",),
)


@pytest.mark.parametrize("lines", KEY_LINES, ids=lambda lines: lines[0][:30])
def test_a_key_is_masked_in_whatever_form_a_program_prints_it(lines: tuple[str, ...]) -> None:
    stamped = [
        f"0.00.001.{number:03} I {line}" for number, line in enumerate(lines) if not line.startswith("[")
    ]
    for form in (list(lines), stamped) if len(lines) == 1 else (list(lines),):
        assert "SECRET" not in masked(*form)
        assert "***" in masked(*form)


def test_a_line_of_a_child_between_a_flag_and_its_key_is_stored_as_it_is() -> None:
    text = masked("srv load:   --api-key", "[40463] srv child: its own line", "srv load:   SECRET")
    assert "its own line" in text


# Files of the program


def test_an_installation_without_its_files_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(install, "_shipped", lambda name: tmp_path / name)
    with pytest.raises(
        CollectorError, match=r"belongs to the program, cannot be read .*: install the program again"
    ):
        install.install(dry_run=True)
