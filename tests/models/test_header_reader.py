"""The child process that reads headers: its limits, its failures, its replacement."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.errors import SourceFailed, Stopped
from collector.models.header_reader import HeaderReader
from tests.support.gguf_files import write_model


@pytest.fixture
def reader() -> Iterator[HeaderReader]:
    with HeaderReader(threading.Event()) as opened:
        yield opened


@pytest.fixture
def good(tmp_path: Path) -> str:
    write_model(tmp_path / "good.gguf")
    return str(tmp_path / "good.gguf")


def replace_child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> None:
    """Let the reader start a process that, after it is ready, runs this code instead."""
    script = tmp_path / "child.py"
    script.write_text(f"import os, resource, signal, sys, time\nprint('{{}}', flush=True)\n{code}\n")
    start = subprocess.Popen
    monkeypatch.setattr(
        subprocess,
        "Popen",
        lambda _, **options: start([sys.executable, str(script)], **options),
    )


def test_one_process_reads_all_files(reader: HeaderReader, good: str, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    assert reader.read(good).verdict == "model"
    process = reader._process
    assert reader.read(str(tmp_path / "bad.gguf")).reason.startswith("ends after 4 bytes")
    assert reader.read(str(tmp_path / "none.gguf")).reason == "No such file or directory"
    assert reader.read(str(tmp_path)).reason
    assert reader._process is process


def test_the_process_has_limits_of_memory_and_time_and_a_low_priority(
    reader: HeaderReader, good: str
) -> None:
    reader.read(good)
    assert reader._process
    pid = reader._process.pid
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    soft = {line[:25].strip(): line[26:47].strip() for line in limits}
    assert int(soft["Max address space"]) < 1024 * 2**20
    assert int(soft["Max cpu time"]) <= 25
    assert os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, 0) + 10


def test_a_killed_process_is_replaced(reader: HeaderReader, good: str) -> None:
    reader.read(good)
    assert reader._process
    os.kill(reader._process.pid, signal.SIGKILL)
    assert reader.read(good).verdict == "model"


def test_a_file_that_kills_the_process_twice_is_unreadable_for_now(
    reader: HeaderReader, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    replace_child(monkeypatch, tmp_path, "sys.stdin.readline(); os.kill(os.getpid(), signal.SIGSEGV)")
    answer = reader.read("killer.gguf")
    assert (answer.verdict, answer.reason) == ("unreadable", "ended the process that read it (exit code -11)")
    assert answer.over_limit


def test_a_file_that_uses_up_the_processor_time_is_unreadable_for_now(
    reader: HeaderReader, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spin = "sys.stdin.readline(); resource.setrlimit(resource.RLIMIT_CPU, (1, 2))\nwhile True: pass"
    replace_child(monkeypatch, tmp_path, spin)
    answer = reader.read("slow.gguf")
    assert answer.reason == "has a header that takes longer to read than any real one"
    assert (answer.verdict, answer.over_limit) == ("unreadable", True)


def test_a_file_without_an_answer_in_time_is_unreadable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    replace_child(monkeypatch, tmp_path, "time.sleep(60)")
    with HeaderReader(threading.Event(), timeout_seconds=0.5) as reader:
        answer = reader.read("hung.gguf")
        assert (answer.verdict, answer.timed_out) == ("unreadable", True)
        assert reader._process is None


def test_a_stop_ends_the_wait_for_an_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    replace_child(monkeypatch, tmp_path, "time.sleep(60)")
    stop = threading.Event()
    with HeaderReader(stop) as reader:
        threading.Timer(0.3, stop.set).start()
        started = time.monotonic()
        with pytest.raises(Stopped):
            reader.read("hung.gguf")
        assert time.monotonic() - started < 10


def test_the_error_for_a_process_that_is_never_ready_names_a_command_that_shows_why(
    reader: HeaderReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(SourceFailed, match=r"/bin/false -m collector\.models\.header_process shows why"):
        reader.read("any.gguf")
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    with pytest.raises(SourceFailed, match="No such file or directory"):
        reader.read("any.gguf")


def test_the_process_ends_with_its_reader(good: str) -> None:
    with HeaderReader(threading.Event()) as reader:
        reader.read(good)
        process = reader._process
    assert process
    assert process.returncode == -signal.SIGKILL
