"""What a large case costs beside a small one: models, GPUs, log files, and the size of the database.

Usage: python -m tests.benchmarks.scale [--gigabytes 20] [--rounds 40] [--turns 3] [--directory DIRECTORY]

Sources: 200 models of a router (4 loaded) beside 4, 16 GPUs beside 1, 64 log files with a new line each beside
1; the router is a stub, and the GPUs are a stub that takes longer to answer than NVIDIA's library does.
Database: 5 rows a sample and 1 KB, so that 20 GB are 100 million rows, beside one of 100,000 samples (of a
quarter of the large one's, where that is small). Both have just been written, so that the kernel caches as much
of them as fits into memory.

The time of each is the median. `held` is the longest time for which others had to wait for the connection.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from collector.backups import creation as backup
from collector.backups.verification import read_contents
from collector.catalog import OWN_TABLES
from collector.commands.status import read_status
from collector.daemon.daemon import Daemon
from collector.database import Database
from collector.database.connection import connect_read_only
from collector.database.deletion import CHUNK_ROWS, count_rows, delete_chunk, find_boundary
from collector.logs.files import LogFileReader
from collector.logs.reader import LogSink
from collector.settings import settings_from
from collector.views import VIEWS
from tests.benchmarks.views import day_of
from tests.support.large_database import INTERVAL_SECONDS, TABLES, fill
from tests.support.many_models import router_of
from tests.support.month import require_success
from tests.support.nvml_stub import NvmlStub

GOAL = 2.0
SMALL_SAMPLES, BYTES_A_SAMPLE = 100_000, 980
NUMBERS = {"models": (4, 200), "GPUs": (1, 16), "log files": (1, 64)}
"""Counts of the small case and of the large one."""
FEW = {what: few for what, (few, _) in NUMBERS.items()}
LOADED = 4
BACKUP_STEPS = 100

WORST_STEP = "the longest of up to 1,100 steps of about 4 ms; the small case has 6"
WHY = {
    "logs polled": "each file is polled; other threads go on meanwhile",
    "tick, processor": "every GPU and model is read",
    "view tokens_by_day": "it finds every local midnight in all rows",
    "prune counts, held": WORST_STEP,
    "backup counts, held": WORST_STEP,
    "status": "it counts all rows; --watch does not",
    "view model_residency": "it reads all rows",
    "view unused_models": "it reads all loads",
}
"""Why some times grow with the size."""

Milliseconds = dict[str, float]


class EnoughSteps(Exception):  # noqa: N818
    """The steps of the copy that are measured are done."""


class HeldDatabase(Database):
    """Records for how long each use blocks the connection for others."""

    def __init__(self, path: Path) -> None:
        self.held_ms: list[float] = []
        super().__init__(path, OWN_TABLES, VIEWS)

    def query(self, *arguments: Any) -> list[dict[str, Any]]:
        with self._holding():
            return super().query(*arguments)

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        with self._holding(), super().transaction() as connection:
            yield connection

    def run_script(self, script: str) -> None:
        with self._holding():
            super().run_script(script)

    @contextmanager
    def _holding(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.held_ms.append(milliseconds_since(started))

    def longest_hold(self, action: Callable[[], object]) -> float:
        """Run an action and return the longest time for which it blocked the connection."""
        self.held_ms = []
        action()
        return max(self.held_ms)


def milliseconds_since(started: float) -> float:
    return 1000 * (time.perf_counter() - started)


def timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return milliseconds_since(started)


def settings(database: Path, url: str, *, gpus: bool) -> Any:
    return settings_from(
        {
            "database": {"path": str(database)},
            "sampling": {"interval": 1},
            "llama_server": {"url": url},
            "gpu": {"enabled": gpus},
            "logging": {"level": "error"},
        }
    )


# The sources


def sources_beside(what: str, rounds: int, turns: int) -> None:
    """Print what a large number costs beside a small one, both measured in turns."""
    few, many = NUMBERS[what]
    seen = [[measured_apart({**FEW, what: number}, rounds) for number in (few, many)] for _ in range(turns)]
    print_head(f"{many} {what} beside {few}")
    for name in seen[0][0]:
        small, large = (statistics.median(turn[case][name] for turn in seen) for case in (0, 1))
        print_ratio(name, small, large)


def measured_apart(numbers: dict[str, int], rounds: int) -> Milliseconds:
    """Measure in a process of its own, which finds this many GPUs."""
    models, gpus, files = (numbers[what] for what in NUMBERS)
    with tempfile.TemporaryDirectory() as directory, router_of(models, LOADED) as url:
        stub = NvmlStub(Path(directory))
        stub.set_count(gpus)
        Path(directory, "calls").symlink_to(os.devnull)
        module = [sys.executable, "-m", "tests.benchmarks.scale", "--rounds", str(rounds)]
        ended = subprocess.run(
            [*module, "--case", url, str(files), directory],
            env={**os.environ, **stub.environment},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    values: Milliseconds = json.loads(ended.stdout)
    return values


def measure_sources(url: str, files: int, directory: Path, rounds: int) -> Milliseconds:
    """Return the times of ticks of the real sources, of flushes, and of polls of this many logs."""
    database = directory / "llama.db"
    daemon = Daemon(settings(database, url, gpus=True))
    sample, flush = (next(job for job in daemon._jobs if job.name == name) for name in ("sample", "flush"))
    logs = [(directory / f"server-{number}.log").open("a") for number in range(files)]
    reader = LogFileReader([str(directory / "server-*.log")], LogSink(daemon._buffer), {})
    spent: dict[str, list[float]] = {"tick": [], "tick, processor": [], "flush": [], "logs polled": []}
    for round_number in range(rounds):
        for log in logs:
            log.write(f"srv  update_slots: all slots are idle, round {round_number}\n")
            log.flush()
        before = time.process_time()
        spent["tick"].append(timed(lambda: daemon._run(sample)))
        spent["tick, processor"].append(1000 * (time.process_time() - before))
        spent["logs polled"].append(timed(reader.poll))
        spent["flush"].append(timed(lambda: daemon._run(flush)))
    require_success(daemon)
    status = statistics.median(timed(lambda: read_status(database)) for _ in range(5))
    for log in logs:
        log.close()
    reader.close()
    daemon.stop()
    return {name: statistics.median(values) for name, values in spent.items()} | {"status": status}


# The database


@dataclass(frozen=True)
class Case:
    """One database and the server that its collector samples."""

    path: Path
    samples: int
    url: str


Measures = dict[str, Callable[[], float]]
"""Functions that return milliseconds, by name."""


def database_beside(gigabytes: float, rounds: int, directory: Path | None) -> None:
    """Print what a database of this size costs beside a small one."""
    large = int(gigabytes * 2**30 / BYTES_A_SAMPLE)
    small = min(SMALL_SAMPLES, large // 4)
    with tempfile.TemporaryDirectory(dir=directory) as scratch, router_of(LOADED, LOADED) as url:
        cases = [Case(Path(scratch, f"{samples}.db"), samples, url) for samples in (small, large)]
        for case in cases:
            seconds = timed(partial(fill, case.path, case.samples)) / 1000
            size = case.path.stat().st_size / 2**30
            print(
                f"{size:.2f} GB, {case.samples * len(TABLES):,} rows: written in {seconds:.0f} s", flush=True
            )
        print_head(f"database of {large * len(TABLES):,} rows beside {small * len(TABLES):,}")
        for phase, times in ((opening, 5), (collecting, rounds), (reading, 5), (keeping, 5)):
            in_turns(cases, phase, times)


def in_turns(
    cases: Iterable[Case], phase: Callable[[Case], AbstractContextManager[Measures]], rounds: int
) -> None:
    """Measure both cases alternately, so that other load affects both."""
    with ExitStack() as stack:
        small, large = (stack.enter_context(phase(case)) for case in cases)
        for name in small:
            pairs = [(small[name](), large[name]()) for _ in range(rounds)]
            print_ratio(name, *(statistics.median(values) for values in zip(*pairs, strict=True)))


@contextmanager
def opening(case: Case) -> Iterator[Measures]:
    """Measure opening and starting."""

    def start() -> float:
        started = time.perf_counter()
        with begun(case) as (sample, flush):
            sample()
            flush()
            return milliseconds_since(started)

    yield {
        "opened": lambda: timed(lambda: Database(case.path, OWN_TABLES, VIEWS).close()),
        "started, first sample committed": start,
    }


@contextmanager
def collecting(case: Case) -> Iterator[Measures]:
    """Measure ticks and flushes."""
    with begun(case) as (sample, flush):
        yield {"tick": lambda: timed(sample), "flush": lambda: after(sample, flush)}


@contextmanager
def reading(case: Case) -> Iterator[Measures]:
    """Measure queries: a day in the middle of each view, and the status."""
    middle = int(time.time()) - case.samples * INTERVAL_SECONDS // 2
    with closing(connect_read_only(case.path)) as reader:

        def ask(view: str) -> float:
            return timed(lambda: reader.execute(*day_of(view, middle)).fetchall())

        yield {
            **{f"view {view.name}": partial(ask, view.name) for view in VIEWS},
            "status": lambda: timed(lambda: read_status(case.path)),
            "status --watch, one update": lambda: timed(lambda: read_status(case.path, count_rows=False)),
        }


@contextmanager
def keeping(case: Case) -> Iterator[Measures]:
    """Measure pruning and backups."""
    stop, copy = threading.Event(), case.path.with_name(f"{case.path.name}.copy")
    with HeldDatabase(case.path) as database:

        def delete() -> float:
            boundary = find_boundary(database, "metrics", CHUNK_ROWS)
            assert boundary
            return timed(lambda: delete_chunk(database, "metrics", boundary))

        yield {
            "prune chunk": delete,
            "prune counts, held": lambda: database.longest_hold(lambda: count_rows(database, "metrics")),
            "backup counts, held": lambda: database.longest_hold(
                lambda: read_contents(database.query, partial(backup._count_rows, database, stop))
            ),
            "backup step": lambda: copy_step(database, copy),
        }


@contextmanager
def begun(case: Case) -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
    """Start a collector and yield its sampling and its flush."""
    daemon = Daemon(settings(case.path, case.url, gpus=False))
    jobs = {job.name: job for job in daemon._jobs}
    yield partial(daemon._run, jobs["sample"]), partial(daemon._run, jobs["flush"])
    require_success(daemon)
    daemon.stop()


def after(preparation: Callable[[], object], action: Callable[[], object]) -> float:
    preparation()
    return timed(action)


def copy_step(database: Database, copy: Path) -> float:
    """Return the median time of the first steps of a copy."""
    steps: list[float] = []

    def between_steps(seconds: float) -> None:
        steps.append(1000 * seconds)
        if len(steps) == BACKUP_STEPS:
            raise EnoughSteps

    with suppress(EnoughSteps):
        database.copy_to(copy, between_steps)
    copy.unlink()
    return statistics.median(steps)


def print_head(title: str) -> None:
    print(f"\n{title}\n{'':<32}      small      large   ratio   (goal: {GOAL:.0f})")


def print_ratio(name: str, small: float, large: float) -> None:
    ratio = large / small
    note = "" if ratio <= GOAL else f"   {WHY.get(name, '*')}"
    print(f"{name:<32} {small:7.2f} ms {large:7.2f} ms {ratio:7.2f}{note}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--turns", type=int, default=3, help="of the small and the large case of the sources")
    parser.add_argument("--directory", type=Path, help="where the databases are made")
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        url, files, directory = options.case
        print(json.dumps(measure_sources(url, int(files), Path(directory), options.rounds)))
        return
    for what in NUMBERS:
        sources_beside(what, options.rounds, options.turns)
    database_beside(options.gigabytes, options.rounds, options.directory)


if __name__ == "__main__":
    main()
