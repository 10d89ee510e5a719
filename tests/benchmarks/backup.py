"""A backup of a large database while it is written: who waits, and what it costs.

    python -m tests.benchmarks.backup [--gigabytes 1] [--directory DIRECTORY]

Compared with `.backup` of the sqlite3 shell on the same file while nobody writes it, in the same run.
"""

import argparse
import resource
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from unittest.mock import patch

from collector.database import Database
from collector.database.backup import BackupDirectory, verify
from collector.jobs import backup as backup_job
from collector.own_tables import OWN_TABLES
from collector.views import VIEWS

FLUSH_SECONDS = 0.2


def fill(database: Database, size_bytes: int) -> None:
    text = "slot update_slots: id  0 | task 4711 | prompt processing progress " + "x" * 150
    while database.path.stat().st_size < size_bytes:
        with database.transaction() as connection:
            rows = [("info", f"{text} {n}", "llama-server", n) for n in range(20_000)]
            connection.executemany(
                "INSERT INTO logs (level, message, source, timestamp) VALUES (?, ?, ?, ?)", rows
            )


class Flushes(threading.Thread):
    """Commits a few rows five times a second, and notes how long each commit took."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._database = database
        self.seconds: list[float] = []
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(FLUSH_SECONDS):
            started = time.perf_counter()
            with self._database.transaction() as connection:
                connection.executemany(
                    "INSERT INTO metrics (cpu_usage, timestamp) VALUES (?, ?)", [(1.0, 1)] * 10
                )
            self.seconds.append(time.perf_counter() - started)


def resident_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


def report(title: str, seconds: list[float]) -> None:
    ordered = sorted(seconds)
    print(
        f"{title:<34} median {1000 * ordered[len(ordered) // 2]:6.1f} ms   worst {1000 * ordered[-1]:6.1f} ms"
    )


def shell_backup(database: Path, copy: Path) -> float:
    """CPU seconds of the sqlite3 shell."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(["sqlite3", str(database), f".backup {copy}"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--directory", type=Path, help="where the files are made; some three times the size")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        measure(Path(directory), options.gigabytes)


def measure(directory: Path, gigabytes: float) -> None:
    path = directory / "large.db"
    with Database(path, OWN_TABLES, VIEWS) as database:
        fill(database, int(gigabytes * 2**30))
        shell_seconds = shell_backup(path, directory / "shell.db")
        (directory / "shell.db").unlink()
        flushes = Flushes(database)
        flushes.start()
        time.sleep(3)
        idle, flushes.seconds = flushes.seconds, []
        before_mb = most_mb = resident_mb()
        copied_at: list[float] = []

        def noted(*arguments: object) -> object:
            copied_at.append(time.thread_time())
            flushes_at.append(len(flushes.seconds))
            return verify(*arguments)  # type: ignore[arg-type]

        flushes_at: list[int] = []
        place = BackupDirectory(directory, path)
        cpu, started = time.thread_time(), time.perf_counter()
        with patch.object(backup_job, "verify", noted):
            summary = backup_job.back_up(database, place, 7, threading.Event())
        wall, cpu_all = time.perf_counter() - started, time.thread_time() - cpu
        most_mb = max(most_mb, resident_mb())
        flushes.ended.set()
        flushes.join()
    print(f"{summary.bytes / 2**20:,.0f} MB in {wall:.1f} s, {summary.rows:,} rows")
    report("a commit before", idle)
    report("a commit while it is copied", flushes.seconds[: flushes_at[0]])
    report("a commit while the copy is proved", flushes.seconds[flushes_at[0] :])
    print(f"memory {before_mb:.1f} MB before, {most_mb:.1f} MB after")
    print(
        f"CPU: copy {copied_at[0] - cpu:.2f} s, with its proof {cpu_all:.2f} s; sqlite3 .backup {shell_seconds:.2f} s: "
        f"ratios {(copied_at[0] - cpu) / shell_seconds:.2f} and {cpu_all / shell_seconds:.2f}"
    )


if __name__ == "__main__":
    main()
