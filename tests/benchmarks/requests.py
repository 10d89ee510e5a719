"""What the requests cost: reading a log with and without them, and the views over a million.

Usage: python -m tests.benchmarks.requests [--rounds 5] [--rows 1000000]

Both readings run alternately; without requests, the tracker returns none and the rest is the same.
"""

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from unittest.mock import patch

from collector.catalog import open_database
from collector.daemon.daemon import tune_garbage_collection
from collector.database.connection import connect_read_only, fetch
from collector.logs.rows.requests import REQUESTS
from collector.parsers.requests.tracker import RequestTracker
from tests.benchmarks.log_lines import LINES, long_run, through_reader
from tests.support.paths import RECORDINGS

LOGS = {
    "nothing but requests": "requests/b11434-default/server.log",
    "the same as JSON": "requests/b11434-jsonl/server.log",
    "the same at -lv 4": "requests/b11434-ollama-flags/server.log",
    "an ordinary log": "logs/single.log",
}
VIEWS = ("requests_by_hour", "slow_requests", "failed_requests", "cache_misses", "model_speeds")
DAY, YEAR = 86_400, 365 * 86_400


def compare(name: str, file: str, rounds: int) -> None:
    """Print how much longer reading takes with requests."""
    recorded = (RECORDINGS / file).read_bytes()
    data = long_run(recorded, LINES // recorded.count(b"\n"))
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(rounds):
        for with_requests in (True, False):
            with tempfile.TemporaryDirectory() as scratch:
                log = Path(scratch) / "llama.log"
                log.write_bytes(data)
                time.sleep(1)  # longer than a record waits for its other lines
                if with_requests:
                    seconds[True].append(through_reader(Path(scratch), log)[0])
                    continue
                with patch.object(RequestTracker, "add", lambda *_: []):
                    seconds[False].append(through_reader(Path(scratch), log)[0])
    with_, without = statistics.median(seconds[True]), statistics.median(seconds[False])
    print(
        f"{name:<22} {LINES / with_:9,.0f} lines/s   without requests {LINES / without:9,.0f}   + {with_ / without - 1:.0%}"
    )


def peak_kilobytes(file: str, *, with_requests: bool) -> int:
    """Read a log in a new process; return the most memory that it had."""
    code = (
        "import resource, sys, tempfile\n"
        "from pathlib import Path\n"
        "from collector.parsers.requests.tracker import RequestTracker\n"
        "from tests.support.log_reading import file_collector\n"
        "RequestTracker.add = RequestTracker.add if sys.argv[2] == 'True' else lambda *_: []\n"
        "with tempfile.TemporaryDirectory() as scratch:\n"
        "    with file_collector(Path(scratch) / 'd.db', Path(sys.argv[1])) as collector:\n"
        "        collector.poll()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    command = [sys.executable, "-c", code, file, str(with_requests)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def compare_memory(rounds: int) -> None:
    """Print how much more memory reading takes with requests."""
    recorded = (RECORDINGS / LOGS["nothing but requests"]).read_bytes()
    with tempfile.NamedTemporaryFile() as log:
        log.write(long_run(recorded, LINES // recorded.count(b"\n")))
        log.flush()
        time.sleep(1)
        peaks = [
            [peak_kilobytes(log.name, with_requests=choice) for choice in (False, True)]
            for _ in range(rounds)
        ]
    without, with_ = (statistics.median(column) for column in zip(*peaks, strict=True))
    print(f"memory at most {without / 1024:.1f} MB, with requests {(with_ - without) / 1024:+.1f} MB")


def fill(path: Path, rows: int) -> int:
    """Write requests of a year; return Unix seconds of its end."""
    now, chance = int(time.time()), random.Random(1)

    def values(number: int) -> dict[str, object]:
        ended = now - YEAR + number * YEAR // rows
        prompt, generated = chance.randint(5, 8000), chance.randint(1, 800)
        cached = chance.randint(0, prompt)
        return {
            "timestamp": ended,
            "run_id": 1,
            "model": chance.choice("abcd"),
            "task": number,
            "slot": 0,
            "started_at": ended - 5.0,
            "ended_at": float(ended),
            "time_source": "stamp",
            "outcome": chance.choices(("finished", "cancelled", "error"), (93, 5, 2))[0],
            "prompt_tokens": prompt,
            "processed_tokens": prompt - cached,
            "cached_tokens": cached,
            "generated_tokens": generated,
            "context_tokens": prompt + generated,
            "other_requests": number % 3,
            "prompt_ms": 3000 * chance.random(),
            "generation_ms": generated * 20.0,
            "total_ms": generated * 20.0 + 1000,
        }

    with open_database(path) as database, database.transaction() as connection:
        connection.executemany(REQUESTS.insert_statement, (REQUESTS.row(values(n)) for n in range(rows)))  # type: ignore[arg-type]
    return now


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    tune_garbage_collection()
    for name, file in LOGS.items():
        compare(name, file, options.rounds)
    compare_memory(options.rounds)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "d.db"
        now = fill(path, options.rows)
        print(
            f"{options.rows:,} requests of a year: {path.stat().st_size / options.rows:.0f} bytes each; one day of"
        )
        with closing(connect_read_only(path)) as connection:
            for view in VIEWS:
                started = time.perf_counter()
                day = (now - 100 * DAY, now - 99 * DAY)
                rows = fetch(connection, f"SELECT * FROM {view} WHERE timestamp >= ? AND timestamp < ?", day)
                print(f"  {view:<18} {1000 * (time.perf_counter() - started):6.0f} ms, {len(rows):,} rows")


if __name__ == "__main__":
    main()
