"""The disk of the database becomes full, read-only or faulty, and recovers."""

import errno
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Self

import psutil
import pytest

from collector.database.buffer import LINE_CAPACITY_ROWS
from tests.support.collector import WAIT_SECONDS
from tests.support.failing_files import FailingFiles
from tests.support.impatient import ImpatientCollector
from tests.support.log_flood import message

SETTINGS = """[database]
path = "{directory}/disk/llama-dashboard.db"
flush_interval = 1
[sampling]
interval = 1
[llama_server]
url = ""
[gpu]
enabled = false
[models]
rescan_interval = 0
[logs]
files = ["{directory}/llama.log"]
[retention]
logs_max_rows = 0
"""
DISK_MB = 48
LINES = 3 * LINE_CAPACITY_ROWS
FAULT_SECONDS = 6
GROWTH_MB = 48
"""Memory that the waiting lines may use: 20,000 of them, and half as much again for processing them."""

FEW_SAMPLES = 6
BUFFER_DEFAULTS = "collector.database.buffer.Buffer.__init__.__defaults__"

Fault = Callable[[], AbstractContextManager[None]]


class ObservedCollector(ImpatientCollector):
    """A collector whose messages can be read while it runs.

    Args:
        directory: directory of its files; the disk of the database is `disk` in it.
        constants: see `ImpatientCollector`.
    """

    def __init__(self, directory: Path, constants: Mapping[str, object] | None = None) -> None:
        super().__init__(directory, SETTINGS.format(directory=directory), constants or {})
        self.database = directory / "disk" / "llama-dashboard.db"
        self._errors = directory / "stderr"
        self.log = directory / "llama.log"
        self.log.touch()

    def start(self) -> Self:
        with self._errors.open("w") as file:
            self.process = subprocess.Popen(self.command("run"), stderr=file, text=True)
        return self

    def logged(self, words: str) -> list[str]:
        return [line for line in self._errors.read_text().splitlines() if words in line]

    def wait_until_logged(self, words: str) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not self.logged(words):
            assert time.monotonic() < deadline, self._errors.read_text()
            time.sleep(0.02)

    def resident_mb(self) -> float:
        assert self.process
        return float(psutil.Process(self.process.pid).memory_info().rss / 2**20)


@contextmanager
def mounted(disk: Path, *options: str) -> Iterator[None]:
    disk.mkdir()
    subprocess.run(["mount", *options, disk], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Fill the disk to the last byte: with large pieces until one does not fit, then with small ones."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for piece in (2**20, 4096):
            try:
                while file.write(bytes(piece)) == piece:
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC
    try:
        yield
    finally:
        ballast.unlink()


@contextmanager
def full_disk(directory: Path) -> Iterator[Fault]:
    disk = directory / "disk"
    with mounted(disk, "-t", "tmpfs", "-o", f"size={DISK_MB}m", "disk"):
        yield lambda: filled(disk)


@contextmanager
def changing_disk(directory: Path, number: int) -> Iterator[Fault]:
    behind, disk = directory / "behind", directory / "disk"
    behind.mkdir()
    disk.mkdir()
    with FailingFiles(behind, disk) as files:
        yield lambda: files.failing(number)


@contextmanager
def read_only_disk(directory: Path) -> Iterator[Fault]:
    """A real disk cannot become read-only and writable again while a file on it is open for writing."""
    with changing_disk(directory, errno.EROFS) as fault:
        yield fault


@contextmanager
def failing_disk(directory: Path) -> Iterator[Fault]:
    with changing_disk(directory, errno.EIO) as fault:
        yield fault


pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        os.geteuid() != 0 or not Path("/dev/fuse").exists(),
        reason="needs root and FUSE, to mount a disk that fails",
    ),
]


@pytest.fixture(params=[full_disk, read_only_disk, failing_disk])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Fault]:
    with request.param(tmp_path) as fault:
        yield fault


def catch_up(collector: ObservedCollector) -> None:
    """Wait for a sample from after the fault."""
    recovered = int(time.time())
    collector.wait_for(f"SELECT * FROM metrics WHERE timestamp > {recovered}")


def require_logged_once(collector: ObservedCollector, words: str) -> None:
    assert len(collector.wait_for(f"SELECT * FROM logs WHERE message LIKE '%{words}%'")) == 1
    assert len(collector.logged(words)) == 1


def sample_seconds(collector: ObservedCollector) -> list[int]:
    return [row["timestamp"] for row in collector.query("SELECT timestamp FROM metrics ORDER BY id")]


def require_clean_stop(collector: ObservedCollector, directory: Path) -> None:
    """Stop the collector: the database is sound, and no other file remains beside it."""
    assert collector.stop() == 0
    assert collector.query("PRAGMA integrity_check") == [{"integrity_check": "ok"}]
    names = {path.name for path in (directory / "disk").iterdir()}
    assert names - {"backup"} == {"llama-dashboard.db", "llama-dashboard.db.lock"}


def test_while_a_disk_fails_no_sample_and_no_line_is_lost(tmp_path: Path, disk: Fault) -> None:
    with ObservedCollector(tmp_path) as collector:
        collector.wait_for("SELECT * FROM metrics WHERE id > 2")
        before_mb = collector.resident_mb()
        with disk():
            with collector.log.open("a") as log:
                log.writelines(f"0.00.000.000 I {message(number)}\n" for number in range(LINES))
            collector.wait_until_logged("flush: failed")
            time.sleep(FAULT_SECONDS)
            growth_mb = collector.resident_mb() - before_mb
        catch_up(collector)
        collector.wait_for(f"SELECT * FROM logs WHERE message = '{message(LINES - 1)}'")
        for change in ("flush: failed", "flush: ok"):
            require_logged_once(collector, change)
        require_clean_stop(collector, tmp_path)
        lines = collector.query("SELECT message FROM logs WHERE source = 'llama-server'")
        seconds = sample_seconds(collector)
        (health,) = collector.query("SELECT runs FROM collector_health WHERE name = 'sample'")
    assert growth_mb < GROWTH_MB
    assert Counter(row["message"] for row in lines) == Counter(message(number) for number in range(LINES))
    assert len(seconds) == pytest.approx(health["runs"], abs=1), "one may be in progress"
    assert len(seconds) == len(set(seconds)) >= FAULT_SECONDS


def test_if_a_disk_is_full_for_too_long_the_newest_samples_stay_and_the_loss_is_logged(
    tmp_path: Path,
) -> None:
    constants = {BUFFER_DEFAULTS: (FEW_SAMPLES, LINE_CAPACITY_ROWS)}
    with full_disk(tmp_path) as disk, ObservedCollector(tmp_path, constants) as collector:
        collector.wait_for("SELECT * FROM metrics WHERE id > 2")
        with disk():
            collector.wait_until_logged("flush: failed")
            time.sleep(FAULT_SECONDS)
        catch_up(collector)
        require_logged_once(collector, "oldest samples were dropped")
        require_clean_stop(collector, tmp_path)
        (health,) = collector.query("SELECT runs FROM collector_health WHERE name = 'sample'")
        seconds = sample_seconds(collector)
    assert len(seconds) == len(set(seconds)) < health["runs"] - 1
