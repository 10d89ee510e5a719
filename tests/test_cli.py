import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from collector.cli import main
from collector.commands import COMMANDS
from tests.support.collector import Collector
from tests.support.llama_server import LlamaServer, process_name

NO_SERVER = '[llama_server]\nurl = ""\n[gpu]\nenabled = false\n'


def call(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "collector", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def test_help_shows_every_command_and_examples(tmp_path: Path) -> None:
    ended = call("--help", cwd=tmp_path)
    assert ended.returncode == 0
    for word in ("run", "check", "status", "examples:", "--config FILE"):
        assert word in ended.stdout


@pytest.mark.parametrize("name", ["run", *(command.name for command in COMMANDS)])
def test_help_of_a_command_shows_its_arguments_and_examples(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"usage: llama-collector {name} [-h] [--config FILE]" in text
    examples = [line for command in COMMANDS if command.name == name for line in command.examples]
    assert all(f"llama-collector {line}" in text for line in examples)


@pytest.mark.parametrize("arguments", [["--config", "my.toml", "check"], ["check", "--config", "my.toml"]])
def test_the_settings_file_is_named_before_or_after_the_command(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "my.toml").write_text("[typo]\n")
    ended = call(*arguments, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (
        78,
        "llama-collector: my.toml, line 1: unknown table or key [typo]\n",
    )


@pytest.mark.parametrize("arguments", [[], ["fly"], ["status", "--xml"]])
def test_wrong_usage_exits_2(tmp_path: Path, arguments: list[str]) -> None:
    assert call(*arguments, cwd=tmp_path).returncode == 2


@pytest.mark.parametrize("command", ["run", "check", "status"])
def test_wrong_settings_exit_78_with_every_fault_and_create_nothing(tmp_path: Path, command: str) -> None:
    (tmp_path / "bad.toml").write_text("[sampling]\ninterval = -1\n[typo]\n")
    ended = call("--config", "bad.toml", command, cwd=tmp_path)
    assert ended.returncode == 78
    assert "bad.toml, line 2: [sampling] interval must be from 1 to 3600" in ended.stderr
    assert "bad.toml, line 3: unknown table or key [typo]" in ended.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["bad.toml"]


def test_a_missing_key_file_exits_78_before_anything_is_created(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[llama_server]\napi_key_file = "missing"\n')
    ended = call("--config", "c.toml", "run", cwd=tmp_path)
    assert (ended.returncode, [file.name for file in tmp_path.iterdir()]) == (78, ["c.toml"])
    assert "[llama_server] api_key_file" in ended.stderr


def test_run_on_a_file_that_is_no_database_exits_1_and_does_not_change_it(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[database]\npath = "notes"\n')
    (tmp_path / "notes").write_text("not a database, but dear to me\n" * 50)
    ended = call("--config", "c.toml", "run", cwd=tmp_path)
    assert ended.returncode == 1
    assert "it is no SQLite database. Name another file in [database] path" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert (tmp_path / "notes").read_text() == "not a database, but dear to me\n" * 50


def test_status_without_a_database_says_what_to_do(tmp_path: Path) -> None:
    ended = call("status", cwd=tmp_path)
    assert ended.returncode == 1
    assert "start the collector first" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_status_shows_readings_while_the_collector_runs_and_afterwards(
    tmp_path: Path, tiny_model: Path
) -> None:
    with LlamaServer(tiny_model) as server:
        settings = f'[sampling]\ninterval = 1\n[llama_server]\nurl = "{server.url}"\nprocess_name = "{process_name(server.port)}"\n[gpu]\nenabled = false\n'
        with Collector(tmp_path, settings) as collector:
            collector.wait_for("SELECT * FROM metrics WHERE active_models = 1")
            for tokens in (240, 480):
                server.complete(tokens=240)
                collector.wait_for(f"SELECT * FROM llama_metrics WHERE tokens_predicted_total = {tokens}")
            running = collector.call("status")
            data = json.loads(collector.call("status", "--json").stdout)
            assert collector.process
            pid = collector.process.pid
            assert collector.stop() == 0
            stopped = collector.call("status")
    assert running.returncode == stopped.returncode == 0
    assert f"running (process {pid})" in running.stdout
    assert "not running" in stopped.stdout
    for text in ("llama-server", "tiny", "tokens/s", "host", "cpu", "memory"):
        assert text in running.stdout
        assert text in stopped.stdout
    assert data["collector"]["process_id"] == pid
    assert data["metrics"]["active_models"] == 1
    assert data["llama_metrics"][0]["model"] == "tiny"
    assert {row["name"] for row in data["health"]} >= {"host", "llama_server", "sample", "flush", "collector"}
    assert data["database"]["rows"]["metrics"] >= 2


def test_status_reads_a_database_that_another_program_created(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "data" / "llama-dashboard.db"
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.executescript((Path(__file__).parent / "database" / "documented_schema.sql").read_text())
    connection.close()
    ended = call("status", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "no sample yet" in ended.stdout


def test_status_shows_no_control_characters_of_a_log_line(tmp_path: Path) -> None:
    with Collector(tmp_path, NO_SERVER) as collector:
        collector.wait_for("SELECT * FROM metrics")
        assert collector.stop() == 0
    import sqlite3

    connection = sqlite3.connect(collector.database)
    with connection:
        connection.execute("INSERT INTO logs (level, message) VALUES ('error', ?)", ("\x1b[2Jgone\x07",))
    connection.close()
    assert "\x1b" not in collector.call("status").stdout
    assert "gone" in collector.call("status").stdout


def on_a_terminal(command: list[str]) -> str:
    """Return what a command prints when its output is a terminal."""
    master, slave = pty.openpty()
    process = subprocess.Popen(command, stdout=slave, stderr=slave)
    os.close(slave)
    text = b""
    try:
        while piece := os.read(master, 65536):
            text += piece
    except OSError:  # the other end closed
        pass
    process.wait()
    os.close(master)
    return text.decode()


def test_output_is_coloured_only_on_a_terminal(tmp_path: Path) -> None:
    with Collector(tmp_path, NO_SERVER) as collector:
        collector.wait_for("SELECT * FROM metrics")
        assert "\x1b[" in on_a_terminal(collector.command("status"))
        assert "\x1b[" not in collector.call("status").stdout


def test_check_finds_no_problem_where_all_is_well(tmp_path: Path, tiny_model: Path) -> None:
    with LlamaServer(tiny_model) as server:
        settings = f'[llama_server]\nurl = "{server.url}"\nprocess_name = "{process_name(server.port)}"\n[models]\ndirectory = "{tiny_model.parent}"\n'
        ended = Collector(tmp_path, settings).call("check")
    assert ended.returncode == 0, ended.stdout
    assert "no problem found" in ended.stdout
    assert f"{server.url} answers with its metrics" in ended.stdout
    assert f"on port {server.port}" in ended.stdout


def test_check_says_what_to_change_where_nothing_listens(tmp_path: Path) -> None:
    ended = Collector(tmp_path, '[llama_server]\nurl = "http://127.0.0.1:1"\n').call("check")
    assert ended.returncode == 1
    assert "problem  llama-server" in ended.stdout
    assert "change [llama_server] url" in ended.stdout
    assert not (tmp_path / "data").exists()


def test_check_shows_the_command_line_to_change_without_its_key(tmp_path: Path, tiny_model: Path) -> None:
    with LlamaServer(tiny_model, ["--api-key", "s3cr3t"], api_key="s3cr3t") as server:
        (tmp_path / "key").write_text("s3cr3t")
        settings = f'[llama_server]\nurl = "{server.url}"\nprocess_name = "{process_name(server.port)}"\napi_key_file = "{tmp_path}/key"\n'
        ended = Collector(tmp_path, settings).call("check")
    assert ended.returncode == 1
    assert f"--port {server.port} --api-key '***' --metrics" in ended.stdout
    assert "s3cr3t" not in ended.stdout + ended.stderr


def test_a_closed_pipe_causes_no_traceback(tmp_path: Path) -> None:
    with Collector(tmp_path, NO_SERVER) as collector:
        collector.wait_for("SELECT * FROM metrics")
        process = subprocess.Popen(
            collector.command("status", "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout
        process.stdout.close()
        assert process.stderr
        errors = process.stderr.read()
        process.stderr.close()
        process.wait()
    assert "Traceback" not in errors
