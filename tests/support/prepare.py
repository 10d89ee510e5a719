"""Fills the cache folder with what the slow tests need, so that these builds run beside other work.

Usage: python -m tests.support.prepare

A test that needs something which is not ready yet waits for it. Where a build fails, this program prints why
and ends with code 1.
"""

import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from tests.support.container import template
from tests.support.llama_build import CURRENT, OLD, llama_server_program
from tests.support.pythons import DEBIAN_PYTHONS, NoSuchPython, find_python
from tests.support.sqlite_shell import recovering_shell


def build_servers() -> None:
    for build in (CURRENT, OLD):
        llama_server_program(build)


def download_pythons() -> None:
    with suppress(NoSuchPython):  # then their tests are skipped
        for version in DEBIAN_PYTHONS:
            find_python(version, Path("/"))


def main() -> int:
    """Build everything, and return 1 where something failed."""
    # The servers need the processor, the other parts mostly wait for the network.
    with ThreadPoolExecutor() as pool:
        parts = [
            pool.submit(run, build_servers),
            pool.submit(run, recovering_shell, template, download_pythons),
        ]
    return int(not all(part.result() for part in parts))


def run(*builds: Callable[[], object]) -> bool:
    """Run one after another and print how long each took; return whether all succeeded."""
    succeeded = True
    for build in builds:
        started = time.monotonic()
        try:
            build()
        except Exception:  # noqa: BLE001 - the other builds go on
            traceback.print_exc()
            succeeded = False
        print(f"{build.__name__}: {time.monotonic() - started:.0f} s", flush=True)
    return succeeded


if __name__ == "__main__":
    sys.exit(main())
