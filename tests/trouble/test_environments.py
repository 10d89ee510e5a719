"""Ordinary environments that programs often forget: zones, directories, users, values of other programs."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from collector.cli import main
from collector.schema import quote_identifier
from tests.support.collector import Collector

READING = ("status", "status --json", "check", "report", "export")
COMMANDS = (*READING, "scan", "backup", "prune")


@pytest.fixture(scope="module")
def settings() -> Iterator[Path]:
    """Return the settings of a database of one sample, in a directory that every user may enter."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    models = directory / "models"
    models.mkdir()
    text = f'[llama_server]\nurl = ""\n[models]\ndirectory = "{models}"\n[gpu]\nenabled = false\n'
    with Collector(directory, text) as collector:
        collector.wait_for("SELECT * FROM metrics")
        assert collector.stop() == 0
    yield collector.settings_file
    shutil.rmtree(directory)


def run(command: str, settings: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "collector", "--config", str(settings), *command.split()],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


# Time zones

ZONES = ("UTC0", "CET-1CEST,M3.5.0,M10.5.0/3", "<+0530>-5:30", "No/Where", "", ":/nonexistent", "\N{SNOWMAN}")


@pytest.mark.parametrize("zone", ZONES)
def test_whatever_zone_the_c_library_takes_every_command_works(
    settings: Path, zone: str, tmp_path: Path
) -> None:
    environment = {**os.environ, "TZ": zone, "PYTHONTZPATH": ""}  # without Python's own table of zones
    for command in ("backup", f"report --output {tmp_path}/r.html"):
        ended = run(command, settings, environment)
        assert (ended.returncode, ended.stderr) == (0, ""), command


def test_a_backup_is_made_by_the_time_of_the_c_library(tmp_path: Path) -> None:
    zone = "XYZ-3:17"
    local = time.gmtime(time.time() + (3 * 60 + 17) * 60)
    schedule = f"{local.tm_min} {local.tm_hour} * * *"
    text = f'[llama_server]\nurl = ""\n[gpu]\nenabled = false\n[backup]\nschedule = "{schedule}"\n'
    awaited = json.dumps(time.time() - 3600)
    with Collector(tmp_path, text, {**os.environ, "TZ": zone}) as collector:
        collector.wait_for("SELECT * FROM metrics")
        assert collector.stop() == 0
    with closing(sqlite3.connect(collector.database)) as connection, connection:
        connection.execute("DELETE FROM metadata WHERE key LIKE '%ackup%'")
        connection.execute(
            "INSERT OR REPLACE INTO metadata (key, value, updated_at) VALUES ('backupsAwaitedSince', ?, 0)",
            (awaited,),
        )
    with Collector(tmp_path, text, {**os.environ, "TZ": zone}) as collector:
        collector.wait_for("SELECT * FROM metadata WHERE key = 'lastBackup'")
        assert collector.stop() == 0


# Directories and users


def test_in_a_deleted_directory_commands_work_or_say_what_to_do(settings: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for command, config in [*((command, f"--config {settings}") for command in READING), ("check", "")]:
        gone.mkdir()
        program = f"cd {gone} && rmdir {gone} && exec {sys.executable} -m collector {config} {command}"
        ended = subprocess.run(
            ["sh", "-c", program], capture_output=True, text=True, check=False, env=environment
        )
        assert "Traceback" not in ended.stderr, command
        if config:
            assert ended.returncode == 0, ended.stderr
        else:
            assert ended.returncode == 78
            assert "there is no working directory any more: change to another directory" in ended.stderr


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")


@needs_root
def test_a_user_that_may_not_enter_the_working_directory_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-P", "-m"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run(
        [*as_nobody, "collector", "status"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 78, ended.stderr
    assert ended.stderr == (
        "llama-collector: cannot look for config/collector.toml (Permission denied): change to another "
        "directory (cd /), or name the file with --config and whole paths in it\n"
    )


@needs_root
def test_a_user_without_a_name_can_use_every_command(settings: Path) -> None:
    directory = settings.parent
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)
    as_nobody = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", sys.executable, "-m"]
    for command in COMMANDS:
        output = f"--output {directory}/as-user.html" if command == "report" else ""
        ended = subprocess.run(
            [*as_nobody, "collector", "--config", str(settings), *command.split(), *output.split()],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ended.returncode, ended.stderr) == (0, ""), command


def test_check_tells_a_user_without_a_name_which_directory_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != closed and access(path, mode))
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    file = tmp_path / "collector.toml"
    file.write_text(f'[models]\ndirectory = "{closed}/models"\n[llama_server]\nurl = ""\n')
    assert main(["--config", str(file), "check"]) == 1
    assert f"this user may not enter {closed}: sudo setfacl -m u:54321:x" in capsys.readouterr().out


# Values that another program stored

WRITTEN_BY_OTHERS = ("models", "metrics", "logs", "server_config", "metadata")
POISON = (b"\xde\xad\xbe\xef", "text", "", -1, 9e18, float("inf"), 2**62, None)


@pytest.mark.parametrize("value", POISON, ids=repr)
def test_a_value_of_another_type_in_any_column_breaks_no_command_that_reads(
    recorded: Path, tmp_path: Path, value: object, capfd: pytest.CaptureFixture[str]
) -> None:
    database = tmp_path / "d.db"
    with closing(sqlite3.connect(f"file:{recorded}?mode=ro", uri=True)) as source:
        source.execute("VACUUM INTO ?", (str(database),))
    stored = 0
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            if table not in WRITTEN_BY_OTHERS:
                continue
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            for column in columns:
                values = ", ".join(
                    "?" if name == column else quote_identifier(name) for name in columns if name != "id"
                )
                names = ", ".join(quote_identifier(name) for name in columns if name != "id")
                statement = f"INSERT OR IGNORE INTO {table} ({names}) SELECT {values} FROM {table} LIMIT 1"
                try:
                    stored += connection.execute(statement, (value,) if column != "id" else ()).rowcount
                except sqlite3.IntegrityError:
                    continue
    assert stored
    file = tmp_path / "collector.toml"
    file.write_text(f'[database]\npath = "{database}"\n[llama_server]\nurl = ""\n[gpu]\nenabled = false\n')
    for command in READING:
        output = ["--output", str(tmp_path / "r.html")] if command == "report" else []
        code = main(["--config", str(file), *command.split(), *output])
        printed = capfd.readouterr()
        assert (code, printed.err) == (0, ""), command
        if command == "status --json":
            json.loads(printed.out)
