"""The cache folder of the tests: what takes minutes to build and is the same for every test and every run.

It is outside the repository, by default ~/.cache/llama-collector-tests; the environment variable
LLAMA_COLLECTOR_TEST_CACHE names another one.
"""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path


def build_once(name: str, build: Callable[[Path], object]) -> Path:
    """Return a file or folder of the cache, which is built first where it is not there.

    Whoever asks while another worker or another run builds it waits until it is ready. What a failed or
    interrupted build left is removed by the next one.

    Args:
        name: of the file or folder.
        build: creates it at the path that it is given.
    """
    cache = Path(os.environ.get("LLAMA_COLLECTOR_TEST_CACHE", "~/.cache/llama-collector-tests")).expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    built, unfinished = cache / name, cache / f"{name}.unfinished"
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.unlink(missing_ok=True)
            build(unfinished)
            unfinished.rename(built)
    return built
