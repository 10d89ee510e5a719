"""A simulated month leaks nothing; a large case is measured beside a small one.

The short form of `python -m tests.benchmarks.soak` and `python -m tests.benchmarks.scale`, which print the
figures: only what does not depend on the machine is tested here.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from collector.logs.follower import MAX_TAILS
from tests.benchmarks.soak import Reading, readings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TICKS, SECONDS = 30_000, 20
ALLOWED_MB = 3
"""Growth of memory in the second half of the month: a leak of 210 bytes per tick would be more."""

OPEN_FOR_A_MOMENT = 3
"""Descriptors that a reading may meet: /proc while it is listed, a log while its beginning is compared."""

BACKUP_THREADS = 1
"""A backup copies in a thread of its own, for as long as it takes."""


def highest(seen: list[Reading], field: str) -> float:
    return max(one[field] for one in seen)


def test_a_month_of_samples_rotations_prunes_backups_and_reloads_leaks_nothing() -> None:
    seen = list(readings("month", TICKS))
    first, second = seen[:5], seen[5:]
    assert seen[-1]["ticks"] == TICKS
    for field in ("descriptors", "threads"):
        assert highest(second, field) <= highest(first, field), seen
    assert highest(second, "file_mb") < 1.1 * highest(first, "file_mb"), seen
    assert highest(second, "rows") < TICKS / 25 + TICKS / 30 / 24 + 10, seen
    assert highest(second, "resident_mb") < highest(first, "resident_mb") + ALLOWED_MB, seen


def test_the_whole_daemon_at_100_ticks_per_second_leaks_nothing() -> None:
    seen = list(readings("fast", SECONDS))
    first, second = seen[:5], seen[5:]
    assert seen[-1]["ticks"] > 2 * SECONDS  # 100 per second if it gets the processor
    assert highest(second, "threads") <= highest(first, "threads") + BACKUP_THREADS, seen
    assert highest(second, "descriptors") <= seen[0]["descriptors"] + MAX_TAILS + OPEN_FOR_A_MOMENT, seen
    # SQLite's cache of 2 MB fills in this time.
    assert highest(second, "resident_mb") < highest(first, "resident_mb") + ALLOWED_MB + 2, seen


def test_a_large_case_can_be_measured_beside_a_small_one(tmp_path: Path) -> None:
    options = ["--gigabytes", "0.05", "--rounds", "3", "--turns", "1", "--directory", str(tmp_path)]
    command = [sys.executable, "-m", "tests.benchmarks.scale", *options]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    titles = ("200 models beside 4", "16 GPUs beside 1", "64 log files beside 1", "database of")
    assert [title for title in titles if title not in printed] == []
    assert "backup step" in printed
    assert list(tmp_path.iterdir()) == []
