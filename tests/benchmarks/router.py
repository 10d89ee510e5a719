"""CPU time of the collector beside a router with 200 models, 8 of them loaded, and beside a single server.

Usage: python -m tests.benchmarks.router [--seconds 30]

Both sample once a second, in one run. The program is built from source where the cache does not contain it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.tick import WARM_UP_SECONDS, cpu_seconds, resident_megabytes
from tests.support.gguf_files import write_tiny_llama
from tests.support.llama_build import CURRENT, llama_server_program
from tests.support.llama_router import LlamaRouter
from tests.support.llama_server import LlamaServer

MODELS, LOADED = 200, 8


def collector(directory: Path, url: str) -> subprocess.Popen[bytes]:
    directory.mkdir()
    settings = directory / "collector.toml"
    settings.write_text(
        f'[database]\npath = "{directory}/collector.db"\n[sampling]\ninterval = 1\n'
        f'[llama_server]\nurl = "{url}"\n[models]\ndirectory = "{directory}"\n'
    )
    command = [sys.executable, "-m", "collector", "--config", str(settings), "run"]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def measure(scratch: Path, seconds: int) -> None:
    program = llama_server_program(CURRENT)
    models = scratch / "models"
    models.mkdir()
    write_tiny_llama(models / "model-0.gguf")
    for number in range(1, MODELS):
        os.link(models / "model-0.gguf", models / f"model-{number}.gguf")
    with (
        LlamaServer(models / "model-0.gguf", program=program) as single,
        LlamaRouter(program, models, scratch / "router.log", ("--models-max", str(LOADED))) as router,
    ):
        for number in range(LOADED):
            router.complete(f"model-{number}")
        running = {
            "single": collector(scratch / "one", single.url),
            "router": collector(scratch / "many", router.url),
        }
        try:
            time.sleep(WARM_UP_SECONDS)
            before = {name: cpu_seconds(process.pid) for name, process in running.items()}
            time.sleep(seconds)
            spent = {name: (cpu_seconds(p.pid) - before[name]) / seconds for name, p in running.items()}
            resident = {name: resident_megabytes(process.pid) for name, process in running.items()}
        finally:
            for process in running.values():
                process.terminate()
                process.wait()
    report(spent, resident)


def report(spent: dict[str, float], resident: dict[str, float]) -> None:
    for name, value in spent.items():
        print(
            f"{name:<8} {value * 1000:6.2f} CPU seconds per 1,000 ticks   {resident[name]:5.1f} MB resident"
        )
    ratio = spent["router"] / LOADED / spent["single"]
    print(f"router, per loaded model, beside single mode: {ratio:.2f}   (goal: at most 2)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        measure(Path(scratch), options.seconds)


if __name__ == "__main__":
    main()
