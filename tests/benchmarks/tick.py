"""CPU time and memory of the running collector, compared with a bare loop of the same calls.

Usage: python -m tests.benchmarks.tick [--seconds 60]

Both sample one real llama-server at the same time, once a second. The bare loop makes the psutil and
httpx calls of one tick and one committed insert, and nothing else.
"""

import argparse
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.gguf_files import write_tiny_llama
from tests.support.llama_build import CURRENT, llama_server_program
from tests.support.llama_server import LlamaServer

WARM_UP_SECONDS = 10
SECONDS_A_DAY = 86_400
DEFAULT_INTERVAL_SECONDS = 5


def bare_loop(url: str, server_process: int, database: Path) -> None:
    import httpx
    import psutil

    connection = sqlite3.connect(database)
    connection.execute("CREATE TABLE bare (timestamp, cpu, memory, body)")
    client = httpx.Client(timeout=2, trust_env=False)
    server = psutil.Process(server_process)
    while True:
        values = (
            psutil.cpu_times(), psutil.getloadavg(), psutil.virtual_memory(), psutil.swap_memory(),
            psutil.disk_usage("/"), psutil.disk_io_counters(nowrap=False),
            psutil.net_io_counters(pernic=True, nowrap=False), psutil.pids(),
        )  # fmt: skip
        with server.oneshot():
            used = server.cpu_times(), server.memory_info(), server.create_time(), server.status()
        alive = server.is_running()
        body = client.get(f"{url}/metrics").text
        with connection:
            row = (time.time(), str(values[0].user), values[2].percent, f"{used[1].rss}{alive}{len(body)}")
            connection.execute("INSERT INTO bare VALUES (?, ?, ?, ?)", row)
        time.sleep(1 - time.time() % 1)


def cpu_seconds(process: int) -> float:
    """Return the processor time of all running threads; the kernel counts it in nanoseconds."""
    spent = 0
    for thread in Path(f"/proc/{process}/task").iterdir():
        spent += int((thread / "schedstat").read_text().split()[0])
    return spent / 1e9


def resident_megabytes(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


def measure(directory: Path, seconds: int) -> None:
    model = directory / "tiny.gguf"
    write_tiny_llama(model)
    settings = directory / "collector.toml"
    with LlamaServer(model, program=llama_server_program(CURRENT)) as server:
        settings.write_text(
            f'[database]\npath = "{directory}/collector.db"\n[sampling]\ninterval = 1\n'
            f'[llama_server]\nurl = "{server.url}"\n[models]\ndirectory = "{directory}"\n'
        )
        assert server.process
        bare_arguments = ["--bare", server.url, str(server.process.pid), str(directory / "bare.db")]
        commands = {
            "collector": [sys.executable, "-m", "collector", "--config", str(settings), "run"],
            "bare loop": [sys.executable, "-m", "tests.benchmarks.tick", *bare_arguments],
        }
        running = {name: subprocess.Popen(command) for name, command in commands.items()}
        try:
            time.sleep(WARM_UP_SECONDS)
            before = {name: cpu_seconds(process.pid) for name, process in running.items()}
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                server.complete(tokens=8)
                time.sleep(1)
            per_tick = {name: (cpu_seconds(p.pid) - before[name]) / seconds for name, p in running.items()}
            resident = {name: resident_megabytes(process.pid) for name, process in running.items()}
        finally:
            for process in running.values():
                process.terminate()
                process.wait()
    report(per_tick, resident, seconds)


def report(per_tick: dict[str, float], resident: dict[str, float], seconds: int) -> None:
    for name, spent in per_tick.items():
        print(
            f"{name:<10} {spent * 1000:6.2f} CPU seconds per 1,000 ticks   {resident[name]:5.1f} MB resident"
        )
    print(f"ratio      {per_tick['collector'] / per_tick['bare loop']:6.2f}   (goal: at most 1.3)")
    a_day = per_tick["collector"] * SECONDS_A_DAY / DEFAULT_INTERVAL_SECONDS
    print(
        f"at the default interval of {DEFAULT_INTERVAL_SECONDS} s {a_day:.0f} CPU seconds per day ({seconds} ticks)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--bare", nargs=3, metavar=("URL", "PID", "DATABASE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        bare_loop(options.bare[0], int(options.bare[1]), Path(options.bare[2]))
    with tempfile.TemporaryDirectory() as directory:
        measure(Path(directory), options.seconds)


if __name__ == "__main__":
    main()
