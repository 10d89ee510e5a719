"""Build the sqlite3 shell with its command `.recover`, which Debian's own build lacks, from Debian's source.

The build takes about a minute; its result is cached beside the builds of llama-server.
"""

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path


def recovering_shell() -> Path:
    """Return the path of the program, building it if needed.

    Raises:
        RuntimeError: a tool is missing.
        subprocess.CalledProcessError: the source cannot be downloaded or built.
    """
    cache = Path(os.environ.get("LLAMA_COLLECTOR_TEST_CACHE", "~/.cache/llama-collector-tests")).expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    program = cache / "sqlite3-recover"
    with (cache / "sqlite3-recover.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # concurrent runs build it once
        if not program.exists():
            _build(program)
    return program


def _build(program: Path) -> None:
    for tool in ("apt-get", "make", "gcc", "tclsh"):
        if shutil.which(tool) is None:
            raise RuntimeError(f"{tool} is missing: apt-get install make gcc tcl")
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        _fetch_source(scratch)
        (archive,) = scratch.glob("sqlite3_*.orig.tar.*")
        _run(scratch, "tar", "--extract", "--strip-components=1", f"--file={archive}")
        _run(scratch, "./configure", "--disable-tcl", "--disable-readline", "--disable-shared")
        _run(scratch, "make", "sqlite3")
        new = program.with_suffix(".new")
        shutil.copy2(scratch / "sqlite3", new)
        new.rename(program)


def _fetch_source(scratch: Path) -> None:
    """Download the source from this machine's package sources, without changing them."""
    parts, lists = scratch / "parts", scratch / "lists"
    for directory in (parts, lists / "partial"):
        directory.mkdir(parents=True)
    for path in (Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").iterdir()):
        if path.suffix in (".list", ".sources") and path.exists():
            text = re.sub(r"^(Types: )?deb\b(?!-src)", r"\1deb-src", path.read_text(), flags=re.MULTILINE)
            (parts / path.name).write_text(text)
    options = (
        f"Dir::Etc::SourceParts={parts}",
        "Dir::Etc::SourceList=/dev/null",
        f"Dir::State::Lists={lists}",
    )
    apt = ("apt-get", *(word for option in options for word in ("-o", option)))
    _run(scratch, *apt, "update")
    _run(scratch, *apt, "source", "--download-only", "sqlite3")


def _run(directory: Path, *command: str) -> None:
    subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True)
