"""Standard output and error, and systemd's socket, that fail in every way: the collection goes on."""

import fcntl
import os
import pty
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.collector import WAIT_SECONDS, Collector

SETTINGS = """
[sampling]
interval = 1
[llama_server]
url = ""
[gpu]
enabled = false
[backup]
schedule = ""
[models]
rescan_interval = 0
[logging]
format = "console"
"""

Break = Callable[[], None]
"""Breaks the output that a collector was started with."""

Output = Callable[[], AbstractContextManager[tuple[int, Break]]]


@contextmanager
def full_device() -> Iterator[tuple[int, Break]]:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    yield descriptor, lambda: None
    os.close(descriptor)


@contextmanager
def pipe_whose_reader_ends() -> Iterator[tuple[int, Break]]:
    reader, writer = os.pipe()
    yield writer, lambda: os.close(reader)
    os.close(writer)


@contextmanager
def pipe_that_nobody_reads() -> Iterator[tuple[int, Break]]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    yield writer, lambda: fill(writer)
    os.close(reader)
    os.close(writer)


def fill(writer: int) -> None:
    """Fill a pipe, whatever is in it already, and leave it blocking, as a shell does."""
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"x")
    os.set_blocking(writer, True)


@contextmanager
def terminal_that_closes() -> Iterator[tuple[int, Break]]:
    master, terminal = pty.openpty()
    yield terminal, lambda: os.close(master)
    os.close(terminal)


FAILING_OUTPUTS = {
    "a full device": full_device,
    "a pipe whose reader ends": pipe_whose_reader_ends,
    "a pipe that nobody reads": pipe_that_nobody_reads,
    "a terminal that closes": terminal_that_closes,
}


@pytest.mark.slow
@pytest.mark.parametrize("output", FAILING_OUTPUTS.values(), ids=FAILING_OUTPUTS)
def test_the_collector_samples_on_and_stops_in_order(output: Output, tmp_path: Path) -> None:
    collector = Collector(tmp_path, SETTINGS)
    with output() as (descriptor, break_output), started(collector, descriptor) as process:
        break_output()
        change_a_state(collector)
        collector.wait_for("SELECT 1 FROM collector_health WHERE name = 'output' AND state = 'failed'")
        wait_for_samples(collector)
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_SECONDS) == 0
    assert collector.query("SELECT stopped_cleanly FROM collector_runs") == [{"stopped_cleanly": 1}]
    events = "\n".join(row["message"] for row in collector.query("SELECT message FROM logs ORDER BY id"))
    assert "flush: waiting" in events, "what could not be printed is stored"
    assert events.count("output: failed: standard error cannot be written") == 1


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_trouble(closed: str, tmp_path: Path) -> None:
    collector = Collector(tmp_path, SETTINGS)
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *collector.command("run")]
    with subprocess.Popen(shell) as process:
        try:
            collector.wait_for("SELECT 1 FROM metrics")
            change_a_state(collector)
            wait_for_samples(collector)
            process.send_signal(signal.SIGTERM)
            assert process.wait(WAIT_SECONDS) == 0
        finally:
            process.kill()
    assert collector.query("PRAGMA integrity_check") == [{"integrity_check": "ok"}]


@pytest.fixture(params=["missing", "no socket", "nobody reads it", "too long", "abstract and missing"])
def notify_socket(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Address of a socket of systemd that does not work."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        if request.param == "no socket":
            path.write_text("")
        elif request.param == "nobody reads it":
            receiver.bind(str(path))
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, suppress(BlockingIOError):
                sender.setblocking(False)  # noqa: FBT003
                while True:
                    sender.sendto(b"x", str(path))
        addresses = {"too long": "/" + "x" * 200, "abstract and missing": f"@{path}"}
        yield addresses.get(request.param, str(path))


@pytest.mark.slow
def test_a_socket_of_systemd_that_fails_is_no_trouble(notify_socket: str, tmp_path: Path) -> None:
    environment = os.environ | {"NOTIFY_SOCKET": notify_socket}
    with Collector(tmp_path, SETTINGS, environment) as collector:
        collector.wait_for("SELECT 1 FROM metrics")
        wait_for_samples(collector)
        assert collector.stop() == 0
        assert "Traceback" not in collector.output


@pytest.mark.slow
def test_a_collector_that_was_started_with_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    collector = Collector(tmp_path, SETTINGS)
    with subprocess.Popen(["nohup", *collector.command("run")], stderr=subprocess.DEVNULL) as process:
        try:
            collector.wait_for("SELECT 1 FROM metrics")
            process.send_signal(signal.SIGHUP)
            wait_for_samples(collector)
            process.send_signal(signal.SIGTERM)
            assert process.wait(WAIT_SECONDS) == 0
        finally:
            process.kill()


@pytest.mark.parametrize("arguments", [["status"], ["status", "--json"], ["check"]])
@pytest.mark.parametrize("target", ["/dev/full", "a pipe whose reader ends"])
def test_a_command_whose_output_fails_says_so_in_one_line(
    arguments: list[str], target: str, tmp_path: Path
) -> None:
    with Collector(tmp_path, SETTINGS) as collector:
        collector.wait_for("SELECT 1 FROM metrics")
        collector.stop()
    if target == "/dev/full":
        output = os.open(target, os.O_WRONLY)
    else:
        reader, output = os.pipe()
        os.close(reader)
    result = subprocess.run(
        collector.command(*arguments), stdout=output, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(output)
    assert result.returncode == 1
    expected = "llama-collector: No space left on device\n" if target == "/dev/full" else ""
    assert result.stderr == expected


@contextmanager
def started(collector: Collector, descriptor: int) -> Iterator[subprocess.Popen[bytes]]:
    """Start a collector that prints to a descriptor, and wait for its first sample."""
    with subprocess.Popen(collector.command("run"), stdout=descriptor, stderr=descriptor) as process:
        try:
            collector.wait_for("SELECT 1 FROM metrics")
            yield process
        finally:
            process.kill()


def change_a_state(collector: Collector) -> None:
    """Lock the database until a flush has failed: the state of `flush` changes twice."""
    with closing(sqlite3.connect(collector.database, timeout=WAIT_SECONDS, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        time.sleep(2.5)  # two flushes: nothing tells another process that one has failed
        other.execute("ROLLBACK")
    collector.wait_for("SELECT 1 FROM logs WHERE message LIKE 'flush: waiting%'")


def wait_for_samples(collector: Collector) -> None:
    """Wait for two more samples."""
    (newest,) = collector.wait_for("SELECT max(id) AS id FROM metrics")
    collector.wait_for(f"SELECT 1 FROM metrics WHERE id > {newest['id']} + 1")
