"""A month of a collector's life in minutes: its real parts in one process, driven without waiting.

`tests.benchmarks.soak` starts it, in a process of its own, after it has set up a clock that leaps.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import collector.daemon.daemon
from collector.daemon.daemon import Daemon, tune_garbage_collection
from collector.daemon.jobs import Job
from collector.database import Database
from collector.health import Health, observe
from collector.history import steps
from collector.logs.files import LogFileReader
from collector.logs.reader import LogSink, stored_positions
from collector.schema import BYTES_PER_MB
from collector.settings import Settings, settings_from
from collector.sources.base import Reading, Source, Tick
from tests.support.fast_clock import FastClock

READINGS = 10
DAYS, HOURS_A_DAY = 30, 24
FLUSH_TICKS, SCAN_TICKS, REAL_TICKS = 5, 300, 50
"""Ticks between two flushes, two scans, and two readings of the real sources."""

ROTATIONS_A_DAY, ROTATED_FILES = 4, 3
LEAST_KEPT_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Usage:
    """Resources of the process and its database at one moment."""

    ticks: int
    resident_mb: float
    descriptors: int
    threads: int
    file_mb: float
    free_pages: int
    rows: int


def usage(ticks: int, database: Database) -> Usage:
    """Measure this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    fields = dict(line.split(":", 1) for line in status.splitlines())
    (free,) = database.query("PRAGMA freelist_count")
    (counted,) = database.query("SELECT count(*) AS n FROM metrics")
    return Usage(
        ticks,
        int(fields["VmRSS"].split()[0]) / 1024,
        len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - every Path would be another object
        int(fields["Threads"]),
        database.path.stat().st_size / BYTES_PER_MB,
        free["freelist_count"],
        counted["n"],
    )


def require_success(daemon: Daemon, *more: Health) -> None:
    """Require that every source and job works: one that does not would leak nothing and prove nothing."""
    parts = (*daemon._parts(), *more)
    if bad := [f"{part.name}: {part.state}" for part in parts if not part.state.success]:
        raise AssertionError("; ".join(bad))


def settings_for(directory: Path, url: str, kept_rows: int, **more: dict[str, Any]) -> Settings:
    """Return settings with every source and job, this many rows kept, and a backup whenever the job runs."""
    return settings_from(
        {
            "database": {"path": str(directory / "llama-dashboard.db")},
            "sampling": {"interval": 1},
            "llama_server": {"url": url},
            "models": {"directory": str(directory / "models")},
            "retention": {"metrics_max_rows": kept_rows, "logs_max_rows": kept_rows},
            "backup": {"schedule": "* * * * *", "keep": 2, "self_test_days": 1},
            **more,
        }
    )


class Repeated:
    """A source that is really read every few ticks; in between it repeats its reading with the tick's time."""

    def __init__(self, source: Source[Any]) -> None:
        self._source = source
        self.name, self.tables, self.defaults = source.name, source.tables, source.defaults
        self._last: Reading[Any] | None = None

    def read(self, tick: Tick) -> Reading[Any]:
        if self._last and tick.timestamp % REAL_TICKS:
            return self._repeated(self._last, tick.timestamp)
        self._last = self._source.read(tick)
        return self._last

    def close(self) -> None:
        self._source.close()

    def _repeated(self, last: Reading[Any], timestamp: int) -> Reading[Any]:
        rows = []
        for table, row in last.rows:
            position = table.written_columns.index("timestamp")
            rows.append((table, (*row[:position], timestamp, *row[position + 1 :])))
        return Reading(last.detail, tuple(rows), last.snapshot, last.state)


class LogFile:
    """A log as llama-server writes it and logrotate rotates it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("a", encoding="ascii")
        self._lines = 0

    def write(self, lines: int) -> None:
        for _ in range(lines):
            self._lines += 1
            level = "E" if self._lines % 100 == 0 else "I"
            self._file.write(
                f"0.{self._lines:09}.000 {level} slot release: id 0 | task {self._lines} | stop\n"
            )
        self._file.flush()

    def rotate(self) -> None:
        """Rotate by renaming, as most systems do."""
        names = [self.path, *(Path(f"{self.path}.{number + 1}") for number in range(ROTATED_FILES))]
        for younger, older in reversed(list(pairwise(names))):
            if younger.exists():
                younger.replace(older)
        self._file.close()
        self._file = self.path.open("a", encoding="ascii")

    def copy_and_truncate(self) -> None:
        """Rotate by copying: the writer keeps its file open."""
        Path(f"{self.path}.1").write_bytes(self.path.read_bytes())
        os.truncate(self.path, 0)


class Month:
    """A collector whose clock jumps by a second per tick.

    Thirty days of equal length, whatever the number of ticks: every hour a prune, every day a backup, its trial
    restore, an integrity check and a reload of the settings; the file of a model changes every day.

    Args:
        directory: directory of the database and all other files; it contains `models`.
        url: URL of a llama-server.
        ticks: number of seconds of the month.
        clock: an installed clock.
    """

    def __init__(self, directory: Path, url: str, ticks: int, clock: FastClock) -> None:
        steps.MIN_PAUSE_SECONDS = 0  # no other thread waits for the connection here
        wiring: Any = collector.daemon.daemon
        build_sources = wiring.build_sources
        wiring.build_sources = lambda *given: [Repeated(source) for source in build_sources(*given)]
        self._ticks, self._clock = ticks, clock
        self._day = ticks // DAYS
        self._settings = settings_for(directory, url, max(LEAST_KEPT_ROWS, ticks // 25))
        self._models = sorted((directory / "models").iterdir())
        self._log = LogFile(directory / "llama-server.log")
        self._begin()

    def run(self) -> Iterator[Usage]:
        """Run the month; yield the usage at ten points."""
        for tick in range(1, self._ticks + 1):
            self._clock.jump(1)
            self._tick(tick)
            if tick % (self._ticks // READINGS) == 0:
                yield usage(tick, self._daemon._database)
        self._end()

    def _begin(self) -> None:
        self._daemon = Daemon(self._settings)
        self._jobs = {job.name: job for job in self._daemon._jobs}
        sink = LogSink(self._daemon._buffer)
        positions = stored_positions(self._daemon._database)
        self._reader = LogFileReader([str(self._log.path)], sink, positions)
        self._reader_health = Health(self._reader.name)
        for name in ("sample", "flush", "scan", "backup", "prune"):
            self._daemon._run(self._jobs[name])
        tune_garbage_collection()

    def _end(self) -> None:
        self._reader.close()
        self._daemon.stop()

    def _tick(self, tick: int) -> None:
        self._daemon._run(self._jobs["sample"])
        if tick % FLUSH_TICKS == 0:
            self._log.write(FLUSH_TICKS)
            observe(self._reader_health, self._reader.poll)
            self._daemon._run(self._jobs["flush"])
            self._daemon._heartbeat.report()
        if tick % SCAN_TICKS == 0:
            self._daemon._run(self._jobs["scan"])
        if tick % (self._day // HOURS_A_DAY) == 0:
            self._daemon._run(self._jobs["prune"])
        if tick % (self._day // ROTATIONS_A_DAY) == 0:
            self._log.rotate()
        if tick % self._day == 0:
            self._night(tick // self._day)

    def _night(self, day: int) -> None:
        self._daemon._integrity_check.is_due = True
        for name in ("backup", "backup_test", "damage_check"):
            self._daemon._run(self._jobs[name])
        require_success(self._daemon, self._reader_health)
        os.utime(self._models[day % len(self._models)])
        self._end()
        self._begin()


class FastDaemon(Daemon):
    """The whole daemon, with threads and timers, and a tick every 10 ms; other jobs run more often as well."""

    INTERVALS: ClassVar[dict[str, float]] = {
        "sample": 0.01,
        "flush": 0.05,
        "request_runs": 0.5,
        "request_backfill": 0.5,
        "request_duplicates": 0.5,
        "model_events": 1,
        "log_format": 1,
        "scan": 1,
        "prune": 2,
        "backup": 3,
        "backup_test": 5,
        "damage_check": 7,
    }

    def _build_jobs(self) -> list[Job]:
        return [
            replace(job, interval_seconds=self.INTERVALS.get(job.name, job.interval_seconds))
            for job in super()._build_jobs()
        ]


def fast(
    directory: Path, url: str, seconds: float, now: Callable[[], float] = time.monotonic
) -> Iterator[Usage]:
    """Run the whole daemon with a tick every 10 ms; yield the usage at ten points."""
    log = LogFile(directory / "llama-server.log")
    settings = settings_for(directory, url, LEAST_KEPT_ROWS, logs={"files": [str(log.path)]})
    daemon = FastDaemon(settings)
    daemon.start()
    started = now()
    for point in range(1, READINGS + 1):
        while now() < started + seconds * point / READINGS:
            log.write(5)
            time.sleep(0.05)
        (log.rotate if point % 2 else log.copy_and_truncate)()
        require_success(daemon)
        yield usage(daemon._job_health["sample"]._runs, daemon._database)
    daemon.stop()
