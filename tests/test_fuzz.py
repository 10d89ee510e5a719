"""Tests of the fuzzer itself, and as slow tests half a minute of fuzzing for each target.

Longer: `python -m tests.fuzz --seconds 600`.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from collector.errors import ParseError
from tests.fuzz import cost
from tests.fuzz.seeds import findings, seeds
from tests.fuzz.targets import TARGETS, Target

SECONDS = 30
SEED = 1
"""Gives the same inputs each time, so that a change does not pass by luck. `python -m tests.fuzz` is random."""

COMPLETED = re.compile(r"^Done (\d+) runs", re.MULTILINE)


@pytest.mark.parametrize("name", TARGETS)
def test_every_recording_and_every_former_finding_passes(name: str) -> None:
    assert findings(name)
    for seed in seeds(name):
        TARGETS[name].examine(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_has_seeds_that_are_valid(name: str) -> None:
    valid = [seed for seed in seeds(name) if TARGETS[name]._attempt(seed)[1] is None]
    assert len(valid) >= 3


def check_nothing(_: bytes, __: object) -> None:
    pass


def target(read: Callable[[bytes], object]) -> Target[object]:
    return Target(read, check_nothing, ParseError, ())


def reject(message: str) -> Callable[[bytes], object]:
    def read(_: bytes) -> object:
        raise ParseError(message)

    return read


def test_a_documented_error_passes() -> None:
    target(reject("is not valid")).examine(b"x")


@pytest.mark.parametrize("message", ["", "contains \x1b[31m", "a" * 2000])
def test_an_unreadable_message_is_found(message: str) -> None:
    with pytest.raises(AssertionError):
        target(reject(message)).examine(b"x")


def test_an_undocumented_error_is_found() -> None:
    with pytest.raises(UnicodeDecodeError):
        target(bytes.decode).examine(b"\xff")


def test_time_that_grows_faster_than_the_input_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "SECONDS", 0.05)

    def read(data: bytes) -> object:
        end = time.thread_time() + len(data) ** 2 * 1e-7
        while time.thread_time() < end:
            pass
        return "read"

    target(read).examine(b"a" * 100)
    with pytest.raises(AssertionError, match=r"1,500 bytes take more than 0\.08 s"):
        target(read).examine(b"a" * 1500)


def test_memory_that_grows_faster_than_the_input_is_found() -> None:
    with pytest.raises(AssertionError, match="1,000 bytes take"):
        cost.check_memory(lambda: bytearray(1000 * 1000 * 10), 1000)
    cost.check_memory(lambda: bytearray(1000 * 400), 1000)


def test_every_part_of_an_input_is_stretched() -> None:
    made = {cost.stretched_at(b"abc", choice) for choice in range(3 * 12)}
    assert any(b"a" + b"b" * 1000 in long and long.endswith(b"c") for long in made)
    assert any(b"bcbcbcbc" in long and long.startswith(b"a") for long in made)
    assert all(len(long) <= cost.STRETCHED_BYTES + 3 for long in made)
    inputs = [b"%d" % number for number in range(4000)]
    assert 0 < sum(cost.stretched(data) is not None for data in inputs) < 100


def fuzz(directory: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=directory, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_fuzzing_finds_nothing(name: str, tmp_path: Path) -> None:
    ended = fuzz(tmp_path, "-m", "tests.fuzz", name, "--seconds", str(SECONDS), "--seed", str(SEED))
    output = ended.stdout + ended.stderr
    assert ended.returncode == 0, output[-5000:]
    (runs,) = COMPLETED.findall(output)
    assert int(runs) > 300


@pytest.mark.slow
def test_fuzzing_finds_a_planted_fault(tmp_path: Path) -> None:
    planted = "import math; math.isfinite = lambda value: True"
    script = f"{planted}; from tests.fuzz.__main__ import fuzz; raise SystemExit(fuzz('exposition', 60, seed={SEED}))"
    ended = fuzz(tmp_path, "-c", script)
    assert ended.returncode
    assert "Out of range float values are not JSON compliant" in ended.stdout + ended.stderr
    (found,) = tmp_path.glob("exposition-crash-*")
    assert re.search(rb"nan|inf|1e309|e\d{3}", found.read_bytes(), re.IGNORECASE)
