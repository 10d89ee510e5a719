"""Runs benchmarks and writes what they print, with machine, date and command, to README.md in this folder.

Usage: python -m tests.benchmarks [--quick] [NAME ...]

Without names all run, which takes two hours. With names only those run, and the other sections do not change.
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
    "tick": ("--seconds 300", "--seconds 20"),
    "writer": ("", "--rounds 1"),
    "log_lines": ("", "--rounds 1"),
    "requests": ("", "--rounds 1 --rows 50000"),
    "router": ("", "--seconds 20"),
    "gguf_header": ("", ""),
    "views": ("", "--rows 100000"),
    "backup": ("", "--gigabytes 0.1"),
    "prune": ("", "--rows 200000"),
    "scale": ("", "--gigabytes 0.2 --rounds 10 --turns 1"),
    "soak": ("", "--rows 20000 --seconds 10"),
    "others": ("--seconds 120", "--seconds 20"),
}
README = Path(__file__).with_name("README.md")
HEAD = f"# Benchmarks\n\n{purpose}\n\nWritten by `python -m tests.benchmarks`, not by hand."


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small runs, printed and not written")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}: there are {', '.join(BENCHMARKS)}")
    for name in options.names or BENCHMARKS:
        arguments = BENCHMARKS[name][options.quick]
        command = f"python -m tests.benchmarks.{name} {arguments}".strip()
        print(f"+ {command}", flush=True)
        printed = run(command)
        if not options.quick:
            write(name, f"`{command}`\n\n{machine()}\n\n{as_markdown(printed)}")


def run(command: str) -> str:
    """Run one benchmark and return what it prints.

    Raises:
        CalledProcessError: it failed.
    """
    ended = subprocess.run(
        [sys.executable, *command.split()[1:]], stdout=subprocess.PIPE, text=True, check=True
    )
    print(ended.stdout, flush=True)
    return ended.stdout.rstrip()


def write(name: str, text: str) -> None:
    """Replace the section of that name; the sections have the order of `BENCHMARKS`."""
    sections = read() | {name: text}
    ordered = [f"## {name}\n\n{sections[name]}" for name in BENCHMARKS if name in sections]
    README.write_text("\n\n".join([HEAD, *ordered]) + "\n", encoding="utf-8")


def read() -> dict[str, str]:
    """Return the sections of the file by name."""
    if not README.exists():
        return {}
    _, *sections = README.read_text(encoding="utf-8").split("\n## ")
    parts = [section.partition("\n\n") for section in sections]
    return {name: text.strip() for name, _, text in parts}


def as_markdown(printed: str) -> str:
    """Return a table as it is, and other text as a code block."""
    return printed if printed.startswith("|") else f"```\n{printed}\n```"


def machine() -> str:
    """Return the date, the machine and the versions as one line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = (line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {next(named, 'unknown processor')}, {os.cpu_count()} cores, "
        f"Linux {platform.release().split('-')[0]}, Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}"
    )


if __name__ == "__main__":
    main()
