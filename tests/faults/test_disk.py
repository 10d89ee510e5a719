"""The disk under the database fills up, becomes read-only, or fails; and is well again."""

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
"""Of memory that the waiting lines may take: 20,000 of them, and half as much again for what moves them."""

FEW_SAMPLES = 6
BUFFER_DEFAULTS = "collector.database.buffer.Buffer.__init__.__defaults__"

Fault = Callable[[], AbstractContextManager[None]]


class TellingCollector(ImpatientCollector):
    """Its messages can be read while it runs.

    Args:
        directory: where its files are put; the database's disk is `disk` in it.
        constants: see `ImpatientCollector`.
    """

    def __init__(self, directory: Path, constants: Mapping[str, object] | None = None) -> None:
        super().__init__(directory, SETTINGS.format(directory=directory), constants or {})
        self.database = directory / "disk" / "llama-dashboard.db"
        self._told = directory / "stderr"
        self.log = directory / "llama.log"
        self.log.touch()

    def start(self) -> Self:
        with self._told.open("w") as file:
            self.process = subprocess.Popen(self.command("run"), stderr=file, text=True)
        return self

    def told(self, words: str) -> list[str]:
        return [line for line in self._told.read_text().splitlines() if words in line]

    def wait_until_told(self, words: str) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not self.told(words):
            assert time.monotonic() < deadline, self._told.read_text()
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
    """No byte is free: what follows is written until it does not fit, then by ever smaller pieces."""
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
    """A real one cannot become so and be written again while somebody has a file of it open for writing."""
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


def catch_up(collector: TellingCollector) -> None:
    """Until a sample is there that was taken after the fault."""
    mended = int(time.time())
    collector.wait_for(f"SELECT * FROM metrics WHERE timestamp > {mended}")


def require_said_once(collector: TellingCollector, words: str) -> None:
    assert len(collector.wait_for(f"SELECT * FROM logs WHERE message LIKE '%{words}%'")) == 1
    assert len(collector.told(words)) == 1


def sample_seconds(collector: TellingCollector) -> list[int]:
    return [row["timestamp"] for row in collector.query("SELECT timestamp FROM metrics ORDER BY id")]


def end(collector: TellingCollector, directory: Path) -> None:
    """It ends well, and nothing is left beside the database."""
    assert collector.stop() == 0
    assert collector.query("PRAGMA integrity_check") == [{"integrity_check": "ok"}]
    names = {path.name for path in (directory / "disk").iterdir()}
    assert names - {"backup"} == {"llama-dashboard.db", "llama-dashboard.db.lock"}


def test_a_disk_that_fails_for_a_while_costs_no_sample_and_no_line(tmp_path: Path, disk: Fault) -> None:
    with TellingCollector(tmp_path) as collector:
        collector.wait_for("SELECT * FROM metrics WHERE id > 2")
        before_mb = collector.resident_mb()
        with disk():
            with collector.log.open("a") as log:
                log.writelines(f"0.00.000.000 I {message(number)}\n" for number in range(LINES))
            collector.wait_until_told("flush: failed")
            time.sleep(FAULT_SECONDS)
            growth_mb = collector.resident_mb() - before_mb
        catch_up(collector)
        collector.wait_for(f"SELECT * FROM logs WHERE message = '{message(LINES - 1)}'")
        for change in ("flush: failed", "flush: ok"):
            require_said_once(collector, change)
        end(collector, tmp_path)
        lines = collector.query("SELECT message FROM logs WHERE source = 'llama-server'")
        seconds = sample_seconds(collector)
        (health,) = collector.query("SELECT runs FROM collector_health WHERE name = 'sample'")
    assert growth_mb < GROWTH_MB
    assert Counter(row["message"] for row in lines) == Counter(message(number) for number in range(LINES))
    assert len(seconds) == pytest.approx(health["runs"], abs=1), "one may be under way"
    assert len(seconds) == len(set(seconds)) >= FAULT_SECONDS


def test_where_a_disk_is_full_for_too_long_the_newest_samples_stay_and_the_loss_is_told(
    tmp_path: Path,
) -> None:
    constants = {BUFFER_DEFAULTS: (FEW_SAMPLES, LINE_CAPACITY_ROWS)}
    with full_disk(tmp_path) as disk, TellingCollector(tmp_path, constants) as collector:
        collector.wait_for("SELECT * FROM metrics WHERE id > 2")
        with disk():
            collector.wait_until_told("flush: failed")
            time.sleep(FAULT_SECONDS)
        catch_up(collector)
        require_said_once(collector, "oldest samples were dropped")
        end(collector, tmp_path)
        (health,) = collector.query("SELECT runs FROM collector_health WHERE name = 'sample'")
        seconds = sample_seconds(collector)
    assert len(seconds) == len(set(seconds)) < health["runs"] - 1
