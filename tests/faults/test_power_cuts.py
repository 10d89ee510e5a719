"""Power cuts at random moments: acknowledged rows are on the disk.

The disk is a file in a file system of ours (tests/support/failing_files.py), with a loop device and ext4 on
it. What the kernel has not written is lost with the page cache. Of what it has written since its last request
to flush the disk's own cache, a random part is lost, as with a real disk.

With more cuts: `python -m tests.faults.test_power_cuts 200`
"""

import os
import queue
import random
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from collector.catalog import OWN_TABLES
from collector.database import Database
from collector.errors import DatabaseDamaged
from tests.support.failing_files import FailingFiles

CUTS, CUTS_WITHOUT_SYNCHRONISING = 24, 6
DISK_BYTES = 64 * 2**20
LONGEST_BETWEEN_CUTS = 0.8  # seconds
FIRST_ROWS_SECONDS = 60


@dataclass
class Cut:
    """The state of the disk after a power cut.

    Args:
        acknowledged: rows that were acknowledged as committed before it.
        lost: those of them that are missing.
        journal: whether there was a journal, that is, whether it happened in the middle of a change.
        backups: the newest backups that were acknowledged before it.
    """

    acknowledged: set[int]
    lost: set[int]
    journal: bool
    backups: list[Path]


class Writer:
    """A process that writes a database on the disk, and the rows and backups that it has acknowledged.

    Args:
        database: path on the disk.
        synchronous: value of SQLite's setting; "" for that of the collector.
    """

    def __init__(self, database: Path, synchronous: str) -> None:
        command = [sys.executable, "-m", "tests.support.acknowledging", str(database), synchronous]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.rows: set[int] = set()
        self.backups: list[Path] = []

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._lines.put(line.rstrip())

    def read_acknowledged(self) -> None:
        """Read the acknowledgements until now."""
        while not self._lines.empty():
            line = self._lines.get()
            if line.isdecimal():
                self.rows.add(int(line))
            else:
                self.backups.append(Path(line))

    def wait_for_backups(self, number: int) -> None:
        deadline = time.monotonic() + FIRST_ROWS_SECONDS
        while len(self.backups) < number:
            assert self._process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
            self.read_acknowledged()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout
        self._process.stdout.close()


def call(*command: str | Path) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


@contextmanager
def mounted(image: Path, mount_point: Path) -> Iterator[Path]:
    """Mount the ext4 in a file, and unmount it even if the disk has failed."""
    mount_point.mkdir(exist_ok=True)
    device = call("losetup", "--find", "--show", image)
    try:
        call("mount", "-t", "ext4", device, mount_point)
        try:
            yield mount_point
        finally:
            call("umount", "--lazy", mount_point)
    finally:
        call("losetup", "--detach", device)


def cut_often(directory: Path, cuts: int, synchronous: str, seed: int) -> Generator[Cut]:
    """Cut the power repeatedly; each cut works on a copy, and the writer continues on the original."""
    disks, shown, image = directory / "disks", directory / "shown", directory / "cut.img"
    disks.mkdir()
    shown.mkdir()
    with (disks / "disk.img").open("wb") as disk:
        disk.truncate(DISK_BYTES)
    lazy_nothing = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
    call("mkfs.ext4", "-q", "-E", lazy_nothing, disks / "disk.img")
    chance = random.Random(seed)
    with ExitStack() as stack:
        files = stack.enter_context(FailingFiles(disks, shown))
        database = stack.enter_context(mounted(shown / "disk.img", directory / "live")) / "data" / "cut.db"
        writer = stack.enter_context(closing(Writer(database, synchronous)))
        writer.wait_for_backups(1)
        for _ in range(cuts):
            time.sleep(chance.uniform(0, LONGEST_BETWEEN_CUTS))
            writer.read_acknowledged()
            acknowledged, backups = set(writer.rows), writer.backups[-1:]
            files.cut_power("disk.img", image, chance.randrange(2**32))
            with mounted(image, directory / "found") as found:
                moved = [found / backup.relative_to(directory / "live") for backup in backups]
                yield state_after_cut(found / "data" / "cut.db", acknowledged, moved)


def state_after_cut(database: Path, acknowledged: set[int], backups: list[Path]) -> Cut:
    journal = Path(f"{database}-journal").exists()
    with Database(database, OWN_TABLES) as opened:  # as the collector does when the power is back
        assert opened.query("PRAGMA integrity_check") == [{"integrity_check": "ok"}]
        present = {row["timestamp"] for row in opened.query("SELECT timestamp FROM metrics")}
    return Cut(acknowledged, acknowledged - present, journal, backups)


def require_complete(backup: Path) -> None:
    with closing(sqlite3.connect(f"file:{backup}?mode=ro", uri=True)) as reader:
        assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows, newest = reader.execute("SELECT count(*), max(timestamp) FROM metrics").fetchone()
    assert rows == newest > 0


needs_loop_devices = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(os.path.exists, ("/dev/loop-control", "/dev/fuse"))),
    reason="needs root, loop devices and FUSE, to mount a disk whose power can be cut",
)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), needs_loop_devices]


def test_no_acknowledged_row_or_backup_is_lost_in_a_power_cut(tmp_path: Path) -> None:
    journals = 0
    with closing(cut_often(tmp_path, CUTS, "", seed=CUTS)) as cuts:
        for cut in cuts:
            assert cut.acknowledged
            assert not cut.lost
            assert cut.backups
            for backup in cut.backups:
                require_complete(backup)
            journals += cut.journal
    assert journals, "some must happen in the middle of a change"


def test_these_power_cuts_lose_what_was_not_synchronised(tmp_path: Path) -> None:
    """Otherwise the test before this one would prove nothing."""
    with closing(cut_often(tmp_path, CUTS_WITHOUT_SYNCHRONISING, "OFF", seed=CUTS)) as cuts:
        with suppress(DatabaseDamaged):  # that is a loss too
            assert any(cut.lost for cut in cuts)


def main() -> None:
    cuts, synchronous = int(sys.argv[1]), (sys.argv[2:] or [""])[0]
    with tempfile.TemporaryDirectory() as scratch:
        found = list(cut_often(Path(scratch), cuts, synchronous, seed=int(time.time())))
    lost = [len(cut.lost) for cut in found if cut.lost]
    print(
        f"{len(found)} power cuts, {sum(cut.journal for cut in found)} in the middle of a change, after up to "
        f"{max(len(cut.acknowledged) for cut in found)} acknowledged rows: {len(lost)} lost rows {lost}"
    )


if __name__ == "__main__":
    main()
