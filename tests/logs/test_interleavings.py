"""A writer, a rotation or a kill may act between any two lines of the reader's code; chance decides where."""

import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from collector.database.buffer import Buffer
from collector.errors import SourceAbsent
from collector.logs import clock, files, follower, listing, position, rewrite, tail
from collector.logs.files import LogFileReader
from collector.logs.reader import LogSink

MODULES = (clock, files, follower, listing, position, rewrite, tail)
TRACED = {module.__file__ for module in MODULES}
POLLS_PER_RUN = 12
READER_RUNS = 8
MAX_ROTATIONS = 25


class Killed(BaseException):
    """The process of the reader is killed at this line."""


class Writer:
    """A llama-server and a rotation, one system call at a time.

    Args:
        path: the log file.
        rotation: rename or copytruncate.
        chance: source of the random choices.
    """

    def __init__(self, path: Path, rotation: str, chance: random.Random) -> None:
        self._path = path
        self._chance = chance
        self._rotate = {"rename": self._rename, "copytruncate": self._copytruncate}[rotation]
        self._steps = self._run()
        self.lines: list[str] = []
        self.is_ending = False
        self._rotations = 0

    def step(self) -> bool:
        """Execute the next system call; return whether there was one."""
        return next(self._steps, None) is not None

    def _run(self) -> Iterator[bool]:
        self._file = self._path.open("ab", buffering=0)
        while not self.is_ending and self._rotations < MAX_ROTATIONS:
            yield from self._write(self._chance.choice([1, 1, 2, 5]))
            if self._chance.random() < 0.3:
                self._rotations += 1
                yield from self._shift()
                yield from self._rotate()
        self._file.close()

    def _write(self, count: int) -> Iterator[bool]:
        data = b"".join(self._line() for _ in range(count))
        cut = self._chance.randint(0, len(data))
        for piece in (data[:cut], data[cut:]):
            self._file.write(piece)
            yield True

    def _line(self) -> bytes:
        message = f"srv  test: line {len(self.lines) + 1}."
        self.lines.append(message)
        return f"0.00.001.000 I {message}\n".encode()

    def _shift(self) -> Iterator[bool]:
        number = 1
        while Path(f"{self._path}.{number}").exists():
            number += 1
        for older in range(number - 1, 0, -1):
            Path(f"{self._path}.{older}").rename(f"{self._path}.{older + 1}")
            yield True

    def _rename(self) -> Iterator[bool]:
        self._path.rename(f"{self._path}.1")
        yield True
        yield from self._write(1)  # llama-server continues to write into the renamed file
        self._file.close()
        self._file = self._path.open("ab", buffering=0)
        yield True

    def _copytruncate(self) -> Iterator[bool]:
        shutil.copyfile(self._path, f"{self._path}.1")
        os.truncate(self._path, 0)  # at once: no reader can save what is written in between
        self.wait_for_tick()
        yield True

    def wait_for_tick(self) -> None:
        """Wait until the time of the file changes: the kernel's clock for files advances about every 4 ms."""
        before = self._path.stat().st_mtime_ns
        while self._path.stat().st_mtime_ns == before:
            os.truncate(self._path, self._path.stat().st_size)


class Interleaver:
    """Executes steps of the writer between any two lines of the reader, and kills the reader at any of them."""

    def __init__(self, writer: Writer, chance: random.Random) -> None:
        self._writer = writer
        self._chance = chance
        self._steps = self._kills = 0.0

    def choose(self) -> None:
        """Choose how fast the writer is and how probable a kill is."""
        self._steps = self._chance.choice([0.0, 0.02, 0.2, 0.8])
        self._kills = self._chance.choice([0.0, 0.0, 0.001, 0.01])

    def trace(self, frame: FrameType, event: str, _argument: object) -> Any:
        if frame.f_code.co_filename not in TRACED:
            return None
        if event == "line":
            while self._chance.random() < self._steps:
                self._writer.step()
            if self._chance.random() < self._kills:
                raise Killed
        return self.trace


class Store:
    """The committed lines, and the positions of the same commit."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.positions: dict[str, str] = {}

    def commit(self, buffer: Buffer) -> None:
        for batch in buffer.drain():
            for row in batch.rows:
                if "log_positions" in batch.statement:
                    self.positions[str(row[0])] = str(row[1])
                else:
                    self.lines.append(str(row[1]))


def run_reader(store: Store, path: Path, interleaver: Interleaver | None) -> None:
    """Run one reader from its start to its end, or until it is killed."""
    buffer = Buffer()
    reader = LogFileReader([str(path)], LogSink(buffer), dict(store.positions))
    try:
        for _ in range(POLLS_PER_RUN):
            if interleaver:
                interleaver.choose()
                sys.settrace(interleaver.trace)
            with suppress(SourceAbsent):
                reader.poll()
            sys.settrace(None)
            store.commit(buffer)
    except Killed:
        pass
    finally:
        sys.settrace(None)
        reader.close()


def differences(
    directory: Path, rotation: str, seed: int, settle_seconds: float
) -> tuple[Counter[str], Counter[str]]:
    """Return the lines that are missing and those stored too often after some runs of a reader."""
    chance = random.Random(seed)
    path = directory / "llama.log"
    writer, store = Writer(path, rotation, chance), Store()
    while not writer.lines:
        writer.step()
    run_reader(store, path, None)  # files that are rotated before the first poll are never read
    writer.wait_for_tick()
    interleaver = Interleaver(writer, chance)
    for _ in range(READER_RUNS):
        run_reader(store, path, interleaver)
        for _ in range(chance.choice([0, 0, 10, 100])):
            writer.step()
    writer.is_ending = True
    while writer.step():
        pass
    for _ in range(5):
        time.sleep(settle_seconds)  # the newest lines are stored when they are as old as this
        run_reader(store, path, None)
    written, stored = Counter(writer.lines), Counter(store.lines)
    return written - stored, stored - written


@pytest.mark.timeout(600)
@pytest.mark.parametrize("settle_seconds", [0.0, 0.01])
@pytest.mark.parametrize("rotation", ["rename", "copytruncate"])
@pytest.mark.parametrize("seeds", [range(4), pytest.param(range(4, 250), marks=pytest.mark.slow)], ids=str)
def test_no_line_is_lost_or_stored_twice_whatever_happens_between_two_lines_of_code(
    tmp_path: Path, rotation: str, settle_seconds: float, seeds: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "SETTLE_SECONDS", settle_seconds)
    monkeypatch.setattr(follower, "MAX_OPENED", 7)  # fewer than are rotated
    for seed in seeds:
        directory = tmp_path / str(seed)
        directory.mkdir()
        missing, surplus = differences(directory, rotation, seed, settle_seconds)
        assert (seed, sorted(missing), sorted(surplus)) == (seed, [], [])
        shutil.rmtree(directory)
