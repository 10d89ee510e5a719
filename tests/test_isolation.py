"""Tests do not see each other's processes, nor those of the machine."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support import namespaces
from tests.support.collector import Collector
from tests.support.llama_server import LlamaServer

needs_namespaces = pytest.mark.skipif(
    not namespaces.are_available(), reason="needs root or unprivileged user namespaces"
)
pytestmark = needs_namespaces


def names() -> list[str]:
    return [process.name() for process in psutil.process_iter()]


@pytest.mark.namespaces
def test_a_test_sees_no_process_that_it_did_not_start(foreign_llama_server: subprocess.Popen[bytes]) -> None:
    assert foreign_llama_server.pid
    assert "llama-server" not in names()
    assert len(names()) == 2


def test_outside_the_same_process_is_seen(foreign_llama_server: subprocess.Popen[bytes]) -> None:
    assert psutil.Process(foreign_llama_server.pid).name() == "llama-server"


@pytest.mark.namespaces
def test_its_ports_are_its_own() -> None:
    with socket.create_server(("127.0.0.1", 8080)), socket.create_connection(("127.0.0.1", 8080), 5):
        pass


@pytest.mark.namespaces
@pytest.mark.usefixtures("foreign_llama_server")
def test_with_default_settings_a_collector_counts_the_server_of_its_test_alone(
    tmp_path: Path, tiny_model: Path
) -> None:
    with (
        LlamaServer(tiny_model, name="llama-server") as server,
        Collector(tmp_path, f'[sampling]\ninterval = 1\n[llama_server]\nurl = "{server.url}"\n') as collector,
    ):
        (row,) = collector.wait_for("SELECT * FROM metrics WHERE active_models = 1 LIMIT 1")
        assert row["uptime"] < 60
        server.kill()
        collector.wait_for("SELECT * FROM metrics WHERE uptime = 0")
        assert collector.stop() == 0


def test_a_failure_comes_back_with_its_traceback() -> None:
    def failing() -> None:
        number = 1
        assert number == 2

    with pytest.raises(pytest.fail.Exception, match=r"(?s)assert number == 2.*assert 1 == 2"):
        namespaces.run_in_namespaces(failing)


def test_a_skip_comes_back() -> None:
    with pytest.raises(pytest.skip.Exception, match="not here"):
        namespaces.run_in_namespaces(lambda: pytest.skip("not here"))


def test_a_killed_test_is_a_failure() -> None:
    with pytest.raises(pytest.fail.Exception, match="ended without a result"):
        namespaces.run_in_namespaces(lambda: os.kill(os.getpid(), 9))


def test_what_a_test_leaves_running_ends_with_it(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    script = "import pathlib, sys, time\npathlib.Path(sys.argv[1]).touch()\ntime.sleep(600)"

    def leaving() -> None:
        subprocess.Popen([sys.executable, "-c", script, str(alive)], start_new_session=True)
        while not alive.exists():
            pass

    namespaces.run_in_namespaces(leaving)
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(alive) in (p.info["cmdline"] or [])]
