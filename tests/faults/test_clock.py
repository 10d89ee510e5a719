"""The wall clock is set, or the machine sleeps, while a collector runs.

The full form stops it for minutes: `python -m tests.faults.test_clock --stop-seconds 300`. Changes to and from
daylight-saving time are in `tests/parsers/test_cron.py`.
"""

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from threading import Event

import psutil
import pytest

from collector.backups.creation import back_up
from collector.backups.directory import BackupDirectory
from collector.backups.nightly import NightlyBackup
from collector.backups.trial import TrialRestore
from collector.backups.verification import Contents
from collector.database import Database
from collector.settings import BackupSettings
from tests.support.collector import Collector
from tests.support.impatient import ImpatientCollector
from tests.support.stepped_clock import SteppedClock

SETTINGS = '[sampling]\ninterval = 1\n[llama_server]\nurl = ""\n[gpu]\nenabled = false\n[models]\nrescan_interval = 0\n'
HOUR, DAY = 3600, 86_400
STEPS = (HOUR, 0, -HOUR, 0, DAY, 0, -DAY)
"""Offsets to which the clock is set, one after another: each step is an hour or a day, forward or back."""

TWO_INTERVALS_SECONDS, STALL_SECONDS = 2, 3
"""Because of a busy machine a collector may not sample for the latter."""

SHORT_STOP_SECONDS, STOP_SECONDS = 7, 300
WRITTEN_BYTES = 16 * 2**20
LOGGED = "SELECT message FROM logs WHERE message LIKE 'the clock was set, or the machine slept%'"


def sampled(collector: Collector) -> list[int]:
    rows = collector.query("SELECT timestamp FROM metrics ORDER BY id")
    return [int(row["timestamp"]) for row in rows]


def wait_for_samples(collector: Collector, clock: SteppedClock, number: int = 2) -> None:
    """Wait for this many more samples with the time that the clock shows now."""
    newest = collector.wait_for("SELECT max(id) AS id FROM metrics HAVING count(*)")[0]["id"]
    now = clock.now()
    collector.wait_for(
        f"SELECT count(*) FROM metrics WHERE id > {newest} AND abs(timestamp - {now}) < {HOUR // 2} "
        f"HAVING count(*) >= {number}"
    )


def true_seconds(timestamps: Sequence[int], offsets: Sequence[int]) -> list[int]:
    """Return the true time of each sample: of the possible ones the closest to that of the sample before."""
    true = [timestamps[0]]
    for timestamp in timestamps[1:]:
        true.append(min((timestamp - o for o in offsets), key=lambda second: abs(second - true[-1])))
    return true


@pytest.mark.slow
def test_steps_of_the_clock_cause_neither_a_gap_nor_a_burst_of_samples(tmp_path: Path) -> None:
    clock = SteppedClock(tmp_path)
    settings = SETTINGS.replace('url = ""', 'url = ""\nprocess_name = "a-server"')
    with (
        process_named(tmp_path / "a-server"),
        Collector(tmp_path, settings, clock.environment) as collector,
    ):
        started = time.monotonic()
        wait_for_samples(collector, clock)
        for offset in STEPS:
            clock.set(offset)
            wait_for_samples(collector, clock)
        assert collector.stop() == 0
        lifetime = time.monotonic() - started
    seconds = true_seconds(sampled(collector), (0, *STEPS))
    gaps = [after - before for before, after in pairwise(seconds)]
    assert max(gaps) <= TWO_INTERVALS_SECONDS + STALL_SECONDS
    assert min(gaps) >= 0
    assert len(seconds) <= lifetime + 2
    assert sum(gap == 0 for gap in gaps) <= len(STEPS)  # a step may fall between a sample and its second
    assert len(collector.query(LOGGED)) == len(STEPS)
    (uptime,) = collector.query("SELECT min(uptime) AS least, max(uptime) AS most FROM metrics")
    assert 0 < uptime["least"] < uptime["most"] < lifetime + STALL_SECONDS


@contextmanager
def process_named(program: Path) -> Iterator[None]:
    """Run a process that does nothing and has the name of its program file."""
    shutil.copy("/bin/sleep", program)
    with subprocess.Popen([program, "600"]) as process:
        try:
            yield
        finally:
            process.kill()


def backups(collector: Collector) -> int:
    return len(list(collector.database.parent.glob("backup/*.db")))


def backups_after_checks(collector: Collector) -> int:
    """Return the number of backups after the collector has checked several times whether one is due."""
    checks = "SELECT runs FROM collector_health WHERE name = 'backup'"
    (before,) = collector.wait_for(checks)
    collector.wait_for(f"{checks} AND runs > {before['runs'] + 2}")
    return backups(collector)


@pytest.mark.slow
def test_the_nightly_backup_runs_once_a_night_whatever_the_clock_does(tmp_path: Path) -> None:
    clock = SteppedClock(tmp_path)
    night = datetime.fromtimestamp(clock.now() + HOUR / 2, UTC)
    settings = f'{SETTINGS}[backup]\nschedule = "{night:%-M %-H} * * *"\n'
    frequent_checks = {"collector.daemon.jobs.POLL_SECONDS": 1}
    with ImpatientCollector(tmp_path, settings, frequent_checks, clock.environment) as collector:
        assert backups_after_checks(collector) == 0
        for offset, expected in (
            (HOUR, 1),  # past the nightly time
            (0, 1),  # and back
            (HOUR * 3 // 4, 1),  # the nightly time is reached a second time
            (HOUR + DAY, 2),  # the next night
            (0, 2),  # a clock that was wrong by a day
            (HOUR * 3 // 4, 3),  # must not prevent further backups
        ):
            clock.set(offset)
            assert backups_after_checks(collector) == expected, offset
        assert collector.stop() == 0


@pytest.mark.parametrize("set_back_to", ["01:00", "01:59"])
def test_a_clock_that_is_set_back_before_the_nightly_time_causes_no_second_backup_that_night(
    database: Database, set_back_to: str
) -> None:
    times = iter(
        datetime.fromisoformat(f"2026-06-{time}").timestamp()
        for time in ("01T12:00", "02T02:00", f"02T{set_back_to}", "02T02:00", "02T02:01", "02T12:00")
    )
    place = BackupDirectory(database.path.parent / "backup", database.path)
    now = [0.0]
    nightly = NightlyBackup(database, place, BackupSettings(), Event(), lambda: now[0])
    for now[0] in times:
        nightly.run()
    assert len(place.backups()) == 1
    now[0] += DAY
    nightly.run()
    assert len(place.backups()) == 2


def test_a_clock_that_is_set_back_does_not_make_a_tested_backup_due_again(
    database: Database,
) -> None:
    place = BackupDirectory(database.path.parent / "backup", database.path)
    back_up(database, place, 1, Event())
    tested: list[Path] = []

    def restore(backup: Path, _trial: Path) -> Contents:
        tested.append(backup)
        return Contents(frozenset(), {"metrics": 1})

    now = [0.0]
    test = TrialRestore(database, place, 30, restore, Event(), lambda: now[0])
    for days, expected in ((50, 1), (50 - 1 / 24, 1), (47, 2), (77, 3)):
        now[0] = days * DAY
        test.run()
        assert len(tested) == expected


WAITER = """
from collector.daemon import signals
signals.block_signals()
print("waiting", flush=True)
print(signals.wait_for_signal(1), flush=True)
print(signals.wait_for_signal(30))
"""


def test_a_process_that_was_stopped_and_continued_receives_no_signal() -> None:
    with subprocess.Popen([sys.executable, "-c", WAITER], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(1.2)  # longer than it waits
        process.send_signal(signal.SIGCONT)
        assert process.stdout.readline() == "None\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == f"{signal.SIGTERM:d}\n"


def stop_for(collector: Collector, clock: SteppedClock, seconds: float, slept: int) -> tuple[int, int]:
    """Stop the process as a sleeping machine does, and continue it.

    Args:
        collector: the process.
        clock: its wall clock.
        seconds: for how long.
        slept: how far the wall clock is ahead afterwards: the monotonic one does not count sleep.

    Returns:
        the bytes that were written to all disks meanwhile, and in all.
    """
    assert collector.process
    written = collector.database.with_name("written")
    before = psutil.disk_io_counters()
    collector.wait_for(f"SELECT * FROM metrics WHERE timestamp > {clock.now() + 1}")  # it was read since
    collector.process.send_signal(signal.SIGSTOP)
    stopped = psutil.disk_io_counters()
    written.write_bytes(bytes(WRITTEN_BYTES))
    clock.set(clock.offset + slept)
    time.sleep(seconds)
    continued = psutil.disk_io_counters()
    collector.process.send_signal(signal.SIGCONT)
    wait_for_samples(collector, clock)
    after = psutil.disk_io_counters()
    if not (before and stopped and continued and after):
        return 0, 2**63
    return continued.write_bytes - stopped.write_bytes, after.write_bytes - before.write_bytes


def check_stop(directory: Path, stop_seconds: float, slept: int) -> int:
    """Stop a collector for a while, compare its rows with the time that has passed, and return their number."""
    clock = SteppedClock(directory)
    with Collector(directory, SETTINGS, clock.environment) as collector:
        wait_for_samples(collector, clock)
        started, first = time.monotonic(), sampled(collector)[-1]
        while_stopped, in_all = stop_for(collector, clock, stop_seconds, slept)
        lifetime = time.monotonic() - started
        assert collector.stop() == 0
    assert len(collector.query(LOGGED)) == (1 if slept else 0)
    timestamps = [second for second in sampled(collector) if second >= first]
    assert len(timestamps) <= lifetime - stop_seconds + TWO_INTERVALS_SECONDS + 1
    gap, before, after = max((after - before, before, after) for before, after in pairwise(timestamps))
    asleep = stop_seconds + slept
    assert asleep - 1 <= gap <= asleep + TWO_INTERVALS_SECONDS + STALL_SECONDS
    (row,) = collector.query(
        f"SELECT * FROM host_metrics WHERE timestamp >= {after} ORDER BY id LIMIT 1",
    )
    awake = gap - slept
    assert row["timestamp"] - before <= gap + 1
    assert row["cpu_usage"] is None or 0 <= row["cpu_usage"] <= 100
    if row["disk_write_bytes_per_second"] is not None:
        assert row["disk_write_bytes_per_second"] * (awake + STALL_SECONDS) >= while_stopped
        assert row["disk_write_bytes_per_second"] * (awake - STALL_SECONDS) <= in_all
    return len(timestamps)


@pytest.mark.slow
@pytest.mark.parametrize("slept", [0, HOUR], ids=["stopped", "asleep for an hour"])
def test_after_a_sleep_sampling_continues_and_the_gap_is_not_filled(tmp_path: Path, slept: int) -> None:
    check_stop(tmp_path, SHORT_STOP_SECONDS, slept)


def main() -> None:
    """Stop a collector for minutes, once as a debugger does and once as a sleeping machine does."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--stop-seconds", type=float, default=STOP_SECONDS)
    options = parser.parse_args()
    for slept in (0, HOUR):
        with tempfile.TemporaryDirectory() as directory:
            rows = check_stop(Path(directory), options.stop_seconds, slept)
        print(
            f"stopped for {options.stop_seconds:.0f} s, the clock {slept} s ahead afterwards: {rows} samples"
        )


if __name__ == "__main__":
    main()
