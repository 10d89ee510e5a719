import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.support.log_reading import file_collector

KILLS = 120
KEPT_ROTATIONS = 1000  # none is deleted: a file that is deleted before it was read is lost


class Writer(threading.Thread):
    """Writes numbered lines in the formats of llama-server, and rotates the file."""

    def __init__(self, path: Path, rotate: str, seed: int) -> None:
        super().__init__()
        self._path = path
        self._rotate = getattr(self, f"_{rotate}")
        self._random = random.Random(seed)
        self._number = 0
        self.rotations = 0
        self.may_rotate = threading.Event()  # files that are rotated before the first poll are never read
        self.ended = threading.Event()
        self.lines: list[str] = []

    def run(self) -> None:
        self._file = self._path.open("ab", buffering=0)
        while not self.ended.is_set():
            self._write(self._random.randint(1, 30))
            if self.may_rotate.is_set() and self._random.random() < 0.01:
                self._rotate()
                self.rotations += 1
            time.sleep(0.001)
        self._file.close()

    def _write(self, count: int) -> None:
        data = b"".join(self._line() for _ in range(count))
        cut = self._random.randint(0, len(data))
        self._file.write(data[:cut])  # half of a line may be read
        self._file.write(data[cut:])

    def _line(self) -> bytes:
        self._number += 1
        message = f"srv  test: line {self._number} {'x' * self._random.randint(0, 200)}."
        self.lines.append(message)
        stamp = f"{self._number // 60000}.{self._number // 1000 % 60:02}.{self._number % 1000:03}.000"
        form = self._random.choice(
            ["{stamp} I {message}", "\x1b[34m{stamp}\x1b[0m \x1b[32mI \x1b[0m{message}", "{message}"]
        )
        return (form.format(stamp=stamp, message=message) + "\n").encode()

    def _rename(self) -> None:
        self._shift()
        self._path.rename(f"{self._path}.1")
        self._write(3)  # llama-server continues to write into the renamed file
        self._file.close()
        self._file = self._path.open("ab", buffering=0)

    def _copytruncate(self) -> None:
        self._shift()
        shutil.copyfile(self._path, f"{self._path}.1")
        os.truncate(self._path, 0)

    def _shift(self) -> None:
        for number in range(KEPT_ROTATIONS, 0, -1):
            if (old := Path(f"{self._path}.{number}")).exists():
                old.rename(f"{self._path}.{number + 1}")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("rotate", ["rename", "copytruncate"])
def test_no_line_is_lost_or_stored_twice_when_the_collector_is_killed_at_any_moment(
    tmp_path: Path, rotate: str
) -> None:
    log, database = tmp_path / "llama.log", tmp_path / "data" / "killed.db"
    log.touch()
    chance = random.Random(KILLS)
    writer = Writer(log, rotate, seed=KILLS)
    writer.start()
    try:
        with file_collector(database, log) as collector:
            collector.poll_until(lambda: bool(collector.rows()))
        writer.may_rotate.set()
        for _ in range(KILLS):
            with subprocess.Popen(
                [sys.executable, "-m", "tests.support.read_logs", str(database), str(log)],
                stdout=subprocess.PIPE,
            ) as reader:
                assert reader.stdout
                assert reader.stdout.readline() == b"ready\n"
                time.sleep(chance.uniform(0, 0.3))
                reader.kill()
            time.sleep(chance.choice([0, 0, 0.2]))  # down for some rotations
    finally:
        writer.ended.set()
        writer.join()
    with file_collector(database, log) as collector:
        collector.poll_until(lambda: len(collector.messages()) >= len(writer.lines), 30)
        stored = Counter(collector.messages())
    written = Counter(writer.lines)
    assert writer.rotations > KILLS / 2
    surplus, missing = stored - written, written - stored
    assert (list(surplus)[:5], list(missing)[:5]) == ([], []), (
        f"{len(surplus)} too much, {len(missing)} missing"
    )
