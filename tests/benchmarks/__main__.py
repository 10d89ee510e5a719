"""Runs every benchmark and writes what they print, with machine, date and commands, into README.md beside it.

Usage: python -m tests.benchmarks [--quick]
"""

import argparse
import os
import platform
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from tests.benchmarks import __doc__ as purpose

BENCHMARKS: dict[str, tuple[str, str]] = {
    # module: (arguments, arguments of a quick run)
    "tick": ("--seconds 600", "--seconds 20"),
    "writer": ("", "--rounds 1"),
    "log_lines": ("", "--rounds 1"),
    "router": ("", "--seconds 20"),
    "gguf_header": ("", ""),
    "views": ("", "--rows 100000"),
    "backup": ("", "--gigabytes 0.1"),
    "prune": ("", "--rows 100000"),
}
README = Path(__file__).with_name("README.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small runs, printed and not written")
    quick = parser.parse_args().quick
    sections = [section(name, *arguments, quick=quick) for name, arguments in BENCHMARKS.items()]
    if not quick:
        README.write_text("\n".join([head(), *sections]), encoding="utf-8")


def section(name: str, arguments: str, quick_arguments: str, *, quick: bool) -> str:
    """Run one benchmark; what stands about it in the README.

    Raises:
        CalledProcessError: it failed.
    """
    command = f"python -m tests.benchmarks.{name} {quick_arguments if quick else arguments}".strip()
    print(f"+ {command}", flush=True)
    ended = subprocess.run(
        [sys.executable, *command.split()[1:]], stdout=subprocess.PIPE, text=True, check=True
    )
    print(ended.stdout, flush=True)
    return f"## {name}\n\n`{command}`\n\n```\n{ended.stdout.rstrip()}\n```\n"


def head() -> str:
    processor = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        "unknown processor",
    )
    return (
        f"# Benchmarks\n\n{purpose}\n\nWritten by `python -m tests.benchmarks` on {datetime.now(UTC):%Y-%m-%d}: "
        f"{processor}, {os.cpu_count()} cores, Linux {platform.release().split('-')[0]}, "
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}.\n"
    )


if __name__ == "__main__":
    main()
