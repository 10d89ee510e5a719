import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import pytest

from collector.sources.base import Tick
from collector.sources.llama.local.addresses import process_at
from collector.sources.llama.local.process import LlamaProcess
from collector.sources.llama.processes import LlamaProcessSource

pytestmark = pytest.mark.namespaces  # each test sees no process of that name but its own

NAME = "fake-llama"
CHILD = f"""
import ctypes, sys
ctypes.CDLL(None).prctl(15, b"{NAME}", 0, 0, 0)
print("named", flush=True)
for line in sys.stdin:
    sum(range(30_000_000))
    print("worked", flush=True)
"""


@contextmanager
def process(*arguments: str) -> Iterator[Callable[[], None]]:
    """Start a process with that name; yield a function that makes it use processor time."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin
    assert child.stdout
    assert child.stdout.readline() == "named\n"

    def work() -> None:
        assert child.stdin
        assert child.stdout
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "worked\n"

    try:
        yield work
    finally:
        child.kill()
        child.communicate()


def read(source: LlamaProcessSource) -> tuple[LlamaProcess, ...]:
    return source.read(Tick(0)).detail


def test_without_such_a_process_usage_and_uptime_are_zero() -> None:
    reading = LlamaProcessSource("no-such-process").read(Tick(0))
    assert reading.detail == ()
    assert reading.snapshot == {"cpu_usage": 0.0, "memory_usage": 0.0, "uptime": 0.0}


def test_the_first_reading_of_a_running_process_has_no_usage() -> None:
    with process():
        source = LlamaProcessSource(NAME)
        reading = source.read(Tick(0))
        assert reading.snapshot["cpu_usage"] is None
        assert reading.detail[0].cpu_usage is None
        assert reading.snapshot["memory_usage"] == pytest.approx(
            100 * reading.detail[0].resident_bytes / psutil.virtual_memory().total
        )


def test_usage_is_the_share_of_all_cores_between_two_readings() -> None:
    with process() as work:
        source = LlamaProcessSource(NAME)
        read(source)
        work()
        (busy,) = read(source)
        assert busy.cpu_usage is not None
        one_core = 100 / (psutil.cpu_count() or 1)
        assert one_core / 4 < busy.cpu_usage <= 100


def test_a_process_that_started_since_the_last_reading_is_found_and_all_its_work_counts() -> None:
    source = LlamaProcessSource(NAME)
    read(source)
    with process() as work:
        work()
        (found,) = read(source)
        assert found.cpu_usage is not None
        assert found.cpu_usage > 0


def test_a_process_that_gets_its_name_after_the_first_reading_is_found() -> None:
    source = LlamaProcessSource(NAME)
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.readline(); exec(sys.argv[1])", CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert read(source) == ()
        assert child.stdin
        assert child.stdout
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "named\n"
        assert len(read(source)) == 1
    finally:
        child.kill()
        child.communicate()


def test_bytes_of_a_command_line_that_are_not_utf_8_are_replaced() -> None:
    """Names of files may contain any bytes, but a database stores only text."""
    source = LlamaProcessSource(NAME)
    with process("--model", os.fsdecode(b"/models/\xff.gguf")):
        (measured,) = read(source)
    assert measured.arguments[-2:] == ("--model", "/models/\N{REPLACEMENT CHARACTER}.gguf")


def test_a_process_that_ended_is_not_returned() -> None:
    source = LlamaProcessSource(NAME)
    with process():
        assert len(read(source)) == 1
    assert read(source) == ()
    with process():
        assert len(read(source)) == 1


def test_usage_is_the_sum_of_all_processes_and_uptime_that_of_the_oldest() -> None:
    with process("--port", "1"), process("--port=2"):
        source = LlamaProcessSource(NAME)
        reading = source.read(Tick(0))
        assert [p.port for p in reading.detail] == [1, 2]
        memory = 100 * sum(p.resident_bytes for p in reading.detail) / psutil.virtual_memory().total
        assert reading.snapshot["memory_usage"] == pytest.approx(memory)


def test_uptimes_refer_to_one_moment_even_if_a_reading_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    read_status = psutil.Process.status

    def slow_status(process: psutil.Process) -> str:
        time.sleep(0.3)
        return read_status(process)

    monkeypatch.setattr(psutil.Process, "status", slow_status)
    with process(), process():
        older, younger = read(LlamaProcessSource(NAME))
    apart = younger.started_at - older.started_at
    assert older.uptime_seconds - younger.uptime_seconds == pytest.approx(apart, abs=0.001)


def at(port: int, pid: int) -> LlamaProcess:
    return LlamaProcess(pid, 0.0, None, 0.0, 0, ("llama-server", "--port", str(port)))


@pytest.mark.parametrize(
    ("url", "ports", "expected"),
    [
        ("http://127.0.0.1:8080", [8080, 9000], 0),
        ("http://127.0.0.1:9000/prefix", [8080, 9000], 1),
        ("http://127.0.0.1:7000", [8080], None),
        ("http://127.0.0.1:7000", [8080, 9000], None),
        ("http://127.0.0.1:7000", [], None),
    ],
)
def test_the_process_behind_a_url_is_the_one_on_its_port(
    url: str, ports: list[int], expected: int | None
) -> None:
    found = process_at(url, tuple(at(port, pid) for pid, port in enumerate(ports)))
    assert (found.pid if found else None) == expected
