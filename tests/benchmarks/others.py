"""What the collector costs beside other tools for monitoring, in one run at one interval.

Usage: python -m tests.benchmarks.others [--seconds 60]

All sample this machine once a second and store what they read: Glances as CSV, collectd as CSV,
node_exporter in a Prometheus, netdata in its own database. None of them reads llama-server or writes
SQLite; the collector does both and has every source on: host, a real llama-server, a GPU (the stub of
NVIDIA's library), its log, the models directory. The bare loop of the benchmark `tick` runs beside them.

A tool that is not installed is left out, and its name printed:
apt-get install collectd-core prometheus prometheus-node-exporter netdata; pip install glances
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.benchmarks.tick import cpu_seconds, resident_megabytes
from tests.support.gguf_files import write_tiny_llama
from tests.support.llama_build import CURRENT, llama_server_program
from tests.support.llama_server import LlamaServer, free_port
from tests.support.nvml_stub import NvmlStub

WARM_UP_SECONDS = 15
NODE_EXPORTER_PORT, PROMETHEUS_PORT, NETDATA_PORT = (free_port() for _ in range(3))

COLLECTD = """
Hostname "localhost"
Interval 1
BaseDir "{directory}"
PIDFile "{directory}/pid"
TypesDB "/usr/share/collectd/types.db"
LoadPlugin cpu
LoadPlugin load
LoadPlugin memory
LoadPlugin swap
LoadPlugin df
LoadPlugin disk
LoadPlugin interface
LoadPlugin processes
LoadPlugin csv
<Plugin csv>
    DataDir "{directory}/csv"
</Plugin>
"""

PROMETHEUS = f"""
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs: [{{job_name: node, static_configs: [{{targets: ["127.0.0.1:{NODE_EXPORTER_PORT}"]}}]}}]
"""

NETDATA = f"""
[global]
    run as user = root
[directories]
    cache = {{directory}}/cache
    lib = {{directory}}/lib
    log = {{directory}}/log
[web]
    bind to = 127.0.0.1:{NETDATA_PORT}
"""


@dataclass
class Tool:
    """One tool to compare with.

    Args:
        name: in the table.
        command: starts it in the foreground.
        environment: its additional variables.
    """

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Spent:
    """What a process and all its children have used since their start."""

    cpu_seconds: float
    written_bytes: int
    resident_megabytes: float


def collector(directory: Path, server: LlamaServer) -> Tool:
    settings, log = directory / "collector.toml", directory / "llama.log"
    log.touch()
    settings.write_text(
        f'[database]\npath = "{directory}/collector.db"\n[sampling]\ninterval = 1\n'
        f'[llama_server]\nurl = "{server.url}"\n[models]\ndirectory = "{directory}"\n'
        f'[logs]\nfiles = ["{log}"]\n'
    )
    stub = NvmlStub(directory)
    return Tool(
        "llama-collector",
        [sys.executable, "-m", "collector", "--config", str(settings), "run"],
        dict(stub.environment),
    )


def bare_loop(directory: Path, server: LlamaServer) -> Tool:
    assert server.process
    arguments = [server.url, str(server.process.pid), str(directory / "bare.db")]
    return Tool("bare Python loop", [sys.executable, "-m", "tests.benchmarks.tick", "--bare", *arguments])


def glances(directory: Path, _server: LlamaServer) -> Tool:
    program = _program("glances")
    options = ["--quiet", "--time", "1", "--disable-check-update", "--export", "csv", "--export-csv-file"]
    return Tool("Glances, CSV", [program, *options, str(directory / "glances.csv")])


def collectd(directory: Path, _server: LlamaServer) -> Tool:
    configuration = directory / "collectd.conf"
    configuration.write_text(COLLECTD.format(directory=directory))
    return Tool("collectd, CSV", [_program("collectd"), "-f", "-C", str(configuration)])


def node_exporter(_directory: Path, _server: LlamaServer) -> Tool:
    address = f"--web.listen-address=127.0.0.1:{NODE_EXPORTER_PORT}"
    return Tool("node_exporter", [_program("prometheus-node-exporter"), address])


def prometheus(directory: Path, _server: LlamaServer) -> Tool:
    configuration = directory / "prometheus.yml"
    configuration.write_text(PROMETHEUS)
    options = [
        f"--config.file={configuration}", f"--storage.tsdb.path={directory}/tsdb",
        f"--web.listen-address=127.0.0.1:{PROMETHEUS_PORT}", "--log.level=error",
    ]  # fmt: skip
    return Tool("  its Prometheus", [_program("prometheus"), *options])


def netdata(directory: Path, _server: LlamaServer) -> Tool:
    configuration = directory / "netdata.conf"
    configuration.write_text(NETDATA.format(directory=directory))
    for name in ("cache", "lib", "log"):
        (directory / name).mkdir()
    return Tool("netdata", [_program("netdata"), "-D", "-c", str(configuration)])


TOOLS: tuple[Callable[[Path, LlamaServer], Tool], ...] = (
    collector, bare_loop, collectd, node_exporter, prometheus, netdata, glances,
)  # fmt: skip


def _program(name: str) -> str:
    """Return the path of a program.

    Raises:
        FileNotFoundError: it is not installed.
    """
    path = f"{os.environ['PATH']}:/usr/sbin:{Path(sys.executable).parent}"
    if found := shutil.which(name, path=path):
        return found
    raise FileNotFoundError(name)


def spent(process: psutil.Process) -> Spent:
    """Return what a process and its descendants have used; of those that ended, the processor time only."""
    family = [process, *process.children(recursive=True)]
    ended = sum(member.cpu_times().children_user + member.cpu_times().children_system for member in family)
    return Spent(
        ended + sum(cpu_seconds(member.pid) for member in family),
        sum(member.io_counters().write_bytes for member in family),
        sum(resident_megabytes(member.pid) for member in family),
    )


@contextmanager
def running(tool: Tool, log: Path) -> Iterator[psutil.Process]:
    """Run a tool with its output in a file.

    Raises:
        CalledProcessError: it ended before the block did.
    """
    with log.open("wb") as output:
        process = psutil.Popen(
            tool.command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            env=os.environ | tool.environment,
        )  # fmt: skip
        try:
            yield process
            if (status := process.poll()) is not None:
                raise subprocess.CalledProcessError(status, tool.command, log.read_text()[-1000:])
        finally:
            for member in [*process.children(recursive=True), process]:
                member.terminate()
            process.wait()


def installed(directory: Path, server: LlamaServer) -> Iterator[Tool]:
    """Yield every installed tool, each with a directory of its own."""
    for build in TOOLS:
        own = directory / build.__name__
        own.mkdir()
        try:
            yield build(own, server)
        except FileNotFoundError as missing:
            print(f"{missing} is not installed: left out")


def measure(directory: Path, server: LlamaServer, seconds: int) -> dict[str, tuple[Spent, Spent]]:
    """Run all tools at once, so that other load affects all alike; return the usage of each before and after."""
    tools = list(installed(directory, server))
    with ExitStack() as stack:
        processes = {
            tool.name: stack.enter_context(running(tool, directory / f"{number}.output"))
            for number, tool in enumerate(tools)
        }
        time.sleep(WARM_UP_SECONDS)
        before = {name: spent(process) for name, process in processes.items()}
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            server.complete(tokens=8)
            time.sleep(1)
        return {name: (before[name], spent(process)) for name, process in processes.items()}


def report(figures: dict[str, tuple[Spent, Spent]], seconds: int) -> None:
    print("| tool | CPU seconds per 1,000 samples | of the collector's | MB resident | kB written a second |")
    print("|---|---:|---:|---:|---:|")
    costs = {name: after.cpu_seconds - before.cpu_seconds for name, (before, after) in figures.items()}
    for name, (before, after) in figures.items():
        written = (after.written_bytes - before.written_bytes) / seconds / 1000
        print(
            f"| {name} | {costs[name] / seconds * 1000:.2f} | {costs[name] / costs['llama-collector']:.2f} "
            f"| {after.resident_megabytes:.1f} | {written:.1f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=60)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as text:
        model = Path(text, "tiny.gguf")
        write_tiny_llama(model)
        with LlamaServer(model, program=llama_server_program(CURRENT)) as server:
            report(measure(Path(text), server, seconds), seconds)


if __name__ == "__main__":
    main()
