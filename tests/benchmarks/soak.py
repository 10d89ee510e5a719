"""A simulated month: the resources that the collector uses at ten points of it, and their growth.

Usage: python -m tests.benchmarks.soak [--rows 2500000] [--seconds 300] [--directory DIRECTORY]

First a month of `--rows` samples, one per second, in which the real parts run one after another with a clock
that jumps: sampling (the real sources at every 50th tick, the same readings with a new time in between),
flushes, a log that is rotated, scans, prunes, backups, trial restores, integrity checks, reloads of the
settings. A twenty-fifth of the samples is kept, which is the default for 2,500,000.
Then, for `--seconds`, the whole daemon with its threads and timers and all real sources at 10 ms.
Both sample a stub of a router of 20 models, of which 4 at a time are loaded, and a stub of 2 GPUs.

The files are in memory if there is /dev/shm: otherwise the disk would determine the speed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.fast_clock import FastClock
from tests.support.many_models import router_of
from tests.support.nvml_stub import NvmlStub

if TYPE_CHECKING:  # it may only be imported when the clock is installed
    from tests.support.month import Usage

IN_MEMORY = Path("/dev/shm")
MODELS, LOADED, POLLS_PER_TURN, GPUS = 20, 4, 50, 2
WRITE_MODEL = "import sys, pathlib; from tests.support.gguf_files import write_tiny_llama as w; w(pathlib.Path(sys.argv[1]))"

Reading = dict[str, float]
"""The fields of a `Usage`."""


def readings(part: str, amount: float, directory: Path | None = None) -> Iterator[Reading]:
    """Run a part in a process of its own; yield the usage at ten points.

    Args:
        part: `month` or `fast`.
        amount: number of ticks, or of seconds.
        directory: where its files are created.
    """
    parent = directory or (IN_MEMORY if IN_MEMORY.is_dir() else None)
    with tempfile.TemporaryDirectory(dir=parent) as scratch, router_of(MODELS, LOADED, POLLS_PER_TURN) as url:
        environment = _prepare(Path(scratch))
        command = [sys.executable, "-m", "tests.benchmarks.soak", "--part", part, str(amount), url, scratch]
        events = Path(scratch, "events")
        with (
            events.open("w") as standard_error,
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=standard_error, text=True, env=environment
            ) as process,
        ):
            assert process.stdout
            for line in process.stdout:
                yield json.loads(line)
        if process.returncode:
            raise AssertionError(f"the {part} ended with {process.returncode}: {events.read_text()[-4000:]}")


def _prepare(scratch: Path) -> dict[str, str]:
    """Create models and GPUs; return the environment in which they are found."""
    models, gpus = scratch / "models", scratch / "nvml"
    models.mkdir()
    gpus.mkdir()
    for number in range(3):
        subprocess.run([sys.executable, "-c", WRITE_MODEL, models / f"model-{number}.gguf"], check=True)
    stub = NvmlStub(gpus)
    stub.set_count(GPUS)
    (gpus / "calls").symlink_to(os.devnull)  # millions of them
    return {**os.environ, **stub.environment}


def run_part(part: str, amount: str, url: str, scratch: str) -> None:
    """Print each reading as JSON; called in the process of its own."""
    clock = FastClock()
    if part == "month":
        clock.install()
    from tests.support.month import Month, fast

    directory = Path(scratch)
    seen: Iterator[Usage] = (
        Month(directory, url, int(amount), clock).run()
        if part == "month"
        else fast(directory, url, float(amount))
    )
    for usage in seen:
        print(json.dumps(asdict(usage)), flush=True)


def growth_per_million(seen: list[Reading], field: str) -> float:
    """Return the growth in the second half: the slope of the line that fits best."""
    half = seen[len(seen) // 2 :]
    ticks, values = [one["ticks"] for one in half], [one[field] for one in half]
    mean_ticks, mean_value = sum(ticks) / len(half), sum(values) / len(half)
    above = sum((tick - mean_ticks) * (value - mean_value) for tick, value in zip(ticks, values, strict=True))
    return 1_000_000 * above / sum((tick - mean_ticks) ** 2 for tick in ticks)


def show(title: str, seen: Iterator[Reading]) -> None:
    """Print each reading when it arrives, and then the growth."""
    print(
        f"{title}\n{'ticks':>11}  resident  descriptors  threads      file  free pages     rows", flush=True
    )
    collected = []
    for one in seen:
        collected.append(one)
        print(
            f"{one['ticks']:>11,.0f} {one['resident_mb']:6.1f} MB {one['descriptors']:12.0f} {one['threads']:8.0f} "
            f"{one['file_mb']:6.1f} MB {one['free_pages']:11,.0f} {one['rows']:8,.0f}",
            flush=True,
        )
    grown = {field: growth_per_million(collected, field) for field in collected[0]}
    print(
        f"growth per million ticks, second half: {grown['resident_mb']:+.2f} MB resident, "
        f"{grown['descriptors']:+.1f} descriptors, {grown['threads']:+.1f} threads, {grown['file_mb']:+.2f} MB of file\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_500_000, help="samples of the month, 1,000 at least")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--directory", type=Path, help="directory of the files, about 1 GB")
    parser.add_argument("--part", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        run_part(*options.part)
        return
    show(f"a month of {options.rows:,} ticks", readings("month", options.rows, options.directory))
    show(f"{options.seconds:.0f} s at 10 ms", readings("fast", options.seconds, options.directory))


if __name__ == "__main__":
    main()
