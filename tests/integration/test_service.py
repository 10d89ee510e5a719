"""Messages of a running collector to systemd, through a real notify socket; and the unit file."""

import os
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from collector.daemon.systemd import is_supervised, notify
from tests.support.collector import WAIT_SECONDS, Collector
from tests.support.paths import ROOT

UNIT = ROOT / "systemd" / "llama-collector.service"
QUIET = '[sampling]\ninterval = 1\n[llama_server]\nurl = ""\n[gpu]\nenabled = false\n'


class Systemd:
    """Systemd's end of the notify socket."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self._path))
        self._socket.settimeout(WAIT_SECONDS)
        self.environment = os.environ | {"NOTIFY_SOCKET": str(self._path)}

    def receive(self, wanted: str) -> str:
        """Return the next message with this beginning; messages before it are dropped."""
        while True:
            message = self._socket.recv(4096).decode()
            if message.startswith(wanted):
                return message

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    with closing(Systemd(tmp_path)) as listening:
        yield listening


def reload(collector: Collector, systemd: Systemd) -> None:
    assert collector.process
    collector.process.send_signal(signal.SIGHUP)
    assert "MONOTONIC_USEC=" in systemd.receive("RELOADING=1\n")
    systemd.receive("READY=1")


def messages(collector: Collector, like: str) -> list[str]:
    rows = collector.query(f"SELECT message FROM logs WHERE message LIKE '{like}' ORDER BY id")
    return [str(row["message"]) for row in rows]


def test_without_systemd_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify(READY=1)
    assert not is_supervised()


def test_ready_means_that_the_first_sample_is_in_the_database(tmp_path: Path, systemd: Systemd) -> None:
    with Collector(tmp_path, QUIET, systemd.environment) as collector:
        systemd.receive("READY=1")
        assert len(collector.query("SELECT * FROM metrics")) == 1
        for _ in range(2):
            systemd.receive("WATCHDOG=1")
        assert collector.stop() == 0
        systemd.receive("STOPPING=1")


@pytest.mark.slow
def test_the_status_line_is_sent_once_per_change(tmp_path: Path, systemd: Systemd) -> None:
    with Collector(tmp_path, QUIET, systemd.environment) as collector:
        first = systemd.receive("STATUS=")
        assert first.startswith("STATUS=sampling every 1 s; ")
        assert " MB" in first
        with closing(sqlite3.connect(collector.database, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            while "; flush waiting; " not in systemd.receive("STATUS="):
                pass  # another job may have found the lock first
            systemd.receive("WATCHDOG=1")  # a lock is no reason to be killed
            other.execute("ROLLBACK")
            while "flush" in systemd.receive("STATUS="):
                pass  # sent before the lock was gone, about another job that found it


class TestReload:
    def test_every_setting_takes_effect_the_database_included(self, tmp_path: Path, systemd: Systemd) -> None:
        with Collector(tmp_path, QUIET, systemd.environment) as collector:
            systemd.receive("READY=1")
            old, collector.database = collector.database, tmp_path / "other" / "new.db"
            settings = f'[database]\npath = "{collector.database}"\nflush_interval = 1\n{QUIET}'
            collector.settings_file.write_text(settings)
            reload(collector, systemd)
            collector.wait_for("SELECT * FROM metrics WHERE id >= 2")
            collector.database = old
            assert messages(collector, "collector:%")[-1] == "collector: stopped"
            assert collector.stop() == 0

    def test_no_line_of_a_log_is_lost_or_doubled(self, tmp_path: Path, systemd: Systemd) -> None:
        log = tmp_path / "server.log"
        log.touch()
        with Collector(tmp_path, f'{QUIET}[logs]\nfiles = ["{log}"]\n', systemd.environment) as collector:
            systemd.receive("READY=1")
            written = []
            for number in range(3):
                with log.open("a") as file:
                    for line in range(500):
                        written.append(f"line {number}.{line} of the server")
                        file.write(f"0.00.000.000 I {written[-1]}\n")
                reload(collector, systemd)
            collector.wait_for(f"SELECT * FROM logs WHERE message LIKE '%{written[-1]}'")
            read = messages(collector, "%of the server")
        assert [text.removeprefix("0.00.000.000 I ") for text in read] == written

    @pytest.mark.parametrize(
        ("settings", "fault"),
        [
            ('[llama_server]\napi_key_file = "/missing"\n', "[llama_server] api_key_file: /missing"),
            ('[database]\npath = "/proc"\n', "/proc is a directory: name a file in [database] path"),
        ],
        ids=["settings", "database"],
    )
    def test_a_wrong_file_changes_nothing_and_the_reason_is_logged(
        self, tmp_path: Path, systemd: Systemd, settings: str, fault: str
    ) -> None:
        with Collector(tmp_path, QUIET, systemd.environment) as collector:
            systemd.receive("READY=1")
            collector.settings_file.write_text(settings)
            reload(collector, systemd)
            (row,) = collector.wait_for("SELECT * FROM logs WHERE level = 'error'")
            assert row["message"].startswith("the old settings stay in use: ")
            assert fault in row["message"]
            newest = collector.query("SELECT max(id) AS id FROM metrics")[0]["id"]
            collector.wait_for(f"SELECT * FROM metrics WHERE id > {newest}")
            assert collector.stop() == 0

    def test_while_the_database_is_locked_nothing_is_changed_and_nothing_lost(
        self, tmp_path: Path, systemd: Systemd
    ) -> None:
        with Collector(tmp_path, QUIET, systemd.environment) as collector:
            systemd.receive("READY=1")
            with closing(sqlite3.connect(collector.database, isolation_level=None)) as other:
                other.execute("BEGIN EXCLUSIVE")
                reload(collector, systemd)
                other.execute("ROLLBACK")
            collector.wait_for("SELECT * FROM logs WHERE message LIKE '%reload again later'")
            collector.wait_for("SELECT * FROM metrics WHERE id >= 3")
            assert messages(collector, "collector: stopped") == []
            assert messages(collector, "%are lost%") == []

    def test_the_reload_waits_for_a_new_database_that_is_locked(
        self, tmp_path: Path, systemd: Systemd
    ) -> None:
        with Collector(tmp_path, QUIET, systemd.environment) as collector:
            systemd.receive("READY=1")
            collector.database = tmp_path / "new.db"
            collector.settings_file.write_text(f'[database]\npath = "{collector.database}"\n{QUIET}')
            with closing(sqlite3.connect(collector.database, isolation_level=None)) as other:
                other.execute("BEGIN EXCLUSIVE")
                assert collector.process
                collector.process.send_signal(signal.SIGHUP)
                systemd.receive("RELOADING=1")
                for _ in range(3):
                    systemd.receive("WATCHDOG=1")  # a lock is no reason to be killed
                other.execute("ROLLBACK")
            systemd.receive("READY=1")
            assert collector.query("SELECT * FROM metrics")
            assert collector.stop() == 0
        assert collector.output.count("waiting for the database") == 1


def test_the_key_comes_from_systemds_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from collector.settings import LlamaServerSettings, read_api_key

    monkeypatch.delenv("LLAMA_API_KEY", raising=False)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert read_api_key(LlamaServerSettings()) is None
    (tmp_path / "api-key").write_text("s3cr3t\n")
    assert read_api_key(LlamaServerSettings()) == "s3cr3t"
    monkeypatch.setenv("LLAMA_API_KEY", "from-the-environment")
    assert read_api_key(LlamaServerSettings()) == "from-the-environment"


@pytest.mark.slow
def test_the_unit_scores_1_5_or_better() -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager", str(UNIT)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-200:] + ended.stderr


@pytest.mark.slow
def test_systemd_understands_every_line_of_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/llama-collector/bin/llama-collector", "/bin/true"))
    ended = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, [line for line in ended.stderr.splitlines() if UNIT.name in line]) == (0, [])
