"""Measure a backup of a large database beside sampling and flushes every second: delays, CPU and memory.

Usage: python -m tests.benchmarks.backup [--gigabytes 1] [--directory DIRECTORY]

In the same run it is compared with the sqlite3 shell on the same file, which nobody writes then: the copy with
`.backup`, the verification with `PRAGMA integrity_check` of that copy.
"""

import argparse
import resource
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from collector.backups.creation import BackupSummary, back_up
from collector.backups.directory import BackupDirectory
from collector.catalog import OWN_TABLES
from collector.daemon.sampler import Sampler
from collector.database import Database
from collector.database.buffer import Buffer
from collector.database.writer import Writer
from collector.schema import BYTES_PER_MB
from collector.settings import settings_from
from collector.sources.llama.runs import ServerRuns
from collector.sources.registry import build_sources
from collector.views import VIEWS

SECONDS_BEFORE = 10
FLUSH_OFFSET_SECONDS = 0.75
ROWS_A_FILL = 100_000
FILL = f"""
PRAGMA synchronous = OFF;
PRAGMA journal_mode = OFF;
WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < {ROWS_A_FILL})
INSERT INTO logs (level, message, source, timestamp)
SELECT 'info', 'slot update_slots: id  0 | task ' || x || ' | prompt processing progress, n_past = ' || x
    || ', n_tokens = 2048, progress = ' || (random() % 1000) / 1000.0, 'llama-server', 1700000000 + x FROM n;
WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < {ROWS_A_FILL})
INSERT INTO metrics (cpu_usage, memory_usage, disk_usage, gpu_usage, gpu_memory_used, timestamp)
SELECT random() % 100, random() % 100, 50.0, 12.5, 8000.0, 1700000000 + x FROM n;
"""


class EverySecond(threading.Thread):
    """A thread that does something every second and records how late it started and how long it took."""

    def __init__(self, action: Callable[[], object], offset_seconds: float) -> None:
        super().__init__()
        self._action = action
        self._offset_seconds = offset_seconds
        self._ended = threading.Event()
        self.delay_seconds: list[float] = []
        self.duration_seconds: list[float] = []

    def run(self) -> None:
        due = int(time.time()) + 1 + self._offset_seconds
        while not self._ended.wait(due - time.time()):
            started = time.time()
            self._action()
            self.delay_seconds.append(started - due)
            self.duration_seconds.append(time.time() - started)
            due = max(due + 1, int(time.time()) + self._offset_seconds)

    def end(self) -> None:
        self._ended.set()
        self.join()


class TimedDatabase(Database):
    """A database that records the CPU time of a copy, and the CPU time and the clock at its end."""

    copy_cpu = cpu_at_end = clock_at_end = 0.0

    def copy_to(self, path: Path, between_steps: Callable[[float], None]) -> None:
        started = time.thread_time()
        super().copy_to(path, between_steps)
        self.copy_cpu = time.thread_time() - started
        self.cpu_at_end, self.clock_at_end = time.process_time(), time.monotonic()


def cpu_of_shell(database: Path, command: str) -> float:
    """Return the CPU seconds of the sqlite3 shell."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(["sqlite3", str(database), command], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def resident_mb() -> float:
    return float(psutil.Process().memory_info().rss) / BYTES_PER_MB


@contextmanager
def resident_memory_mb() -> Iterator[list[float]]:
    """Provide a list to which the resident memory is added every 0.1 s."""
    samples, ended = [resident_mb()], threading.Event()

    def sample() -> None:
        while not ended.wait(0.1):
            samples.append(resident_mb())

    sampling = threading.Thread(target=sample)
    sampling.start()
    yield samples
    ended.set()
    sampling.join()


def fill(path: Path, size_bytes: float) -> None:
    Database(path, OWN_TABLES, VIEWS).close()
    while path.stat().st_size < size_bytes:
        subprocess.run(["sqlite3", str(path)], input=FILL, text=True, check=True, stdout=subprocess.DEVNULL)


def worst(seconds: list[float]) -> str:
    return f"{1000 * max(seconds):6.0f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument(
        "--directory", type=Path, help="where the files are created; they need three times the size"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        path = Path(directory, "llama-dashboard.db")
        fill(path, options.gigabytes * 2**30)
        with TimedDatabase(path, OWN_TABLES, VIEWS) as database:
            measure(database)


def measure(database: TimedDatabase) -> None:
    settings = settings_from({"llama_server": {"url": ""}, "gpu": {"enabled": False}})
    buffer = Buffer()
    sampler = Sampler(build_sources(settings, None, database, ServerRuns(database.query)), buffer, 1)
    samples = EverySecond(sampler.tick, 0)
    commits = EverySecond(Writer(database, buffer).flush, FLUSH_OFFSET_SECONDS)
    samples.start()
    commits.start()
    cpu = time.process_time()
    time.sleep(SECONDS_BEFORE)
    idle_cpu = (time.process_time() - cpu) / SECONDS_BEFORE
    print(f"before: commit {worst(commits.duration_seconds)}, sample {worst(samples.delay_seconds)} late")
    samples.delay_seconds, commits.duration_seconds = [], []
    directory = BackupDirectory(database.path.parent / "backup", database.path)
    with resident_memory_mb() as memory:
        summary = back_up(database, directory, 7, threading.Event())
        beside = idle_cpu * (time.monotonic() - database.clock_at_end)
        verification_cpu = time.process_time() - database.cpu_at_end - beside
    samples.end()
    commits.end()
    sampler.close()
    report(database.path, summary, commits, samples, memory)
    shell_copy = database.path.with_name("shell.db")
    shell = [
        cpu_of_shell(database.path, f".backup {shell_copy}"),
        cpu_of_shell(shell_copy, "PRAGMA integrity_check"),
    ]
    for what, ours, theirs in zip(
        ("copy", "verification"), (database.copy_cpu, verification_cpu), shell, strict=True
    ):
        print(
            f"CPU of the {what:<15}{ours:6.2f} s    sqlite3 {theirs:.2f} s: ratio {ours / theirs:.2f}   (goal: 1.5)"
        )


def report(
    path: Path, summary: BackupSummary, commits: EverySecond, samples: EverySecond, memory: list[float]
) -> None:
    size_mb = path.stat().st_size / BYTES_PER_MB
    print(
        f"{size_mb:,.0f} MB, {summary.rows:,} rows, {summary.seconds:.1f} s, {len(commits.duration_seconds)} commits"
    )
    print(f"longest commit       {worst(commits.duration_seconds)}   (goal: 150)")
    print(f"latest sample        {worst(samples.delay_seconds)}   (goal: 500)")
    print(f"memory grown by      {max(memory) - memory[0]:6.1f} MB   (goal: 30)")


if __name__ == "__main__":
    main()
