"""What a user does with the built wheel, on a Python of any version: install it, check it, collect, stop.

Usage: python use_wheel.py WHEELS MODELS SCRATCH

It imports the standard library only, because nothing else is installed where it runs. It ends with a
traceback, or prints the version of Python.
"""

import os
import signal
import sqlite3
import subprocess
import sys
import time
import venv
from contextlib import closing
from pathlib import Path

WAIT_SECONDS = 60
ENVIRONMENT = {
    "PATH": os.defpath,
    "HOME": "/nonexistent",
    "LANG": "C.UTF-8",
    "PYTHONWARNINGS": "always::DeprecationWarning,always::PendingDeprecationWarning",
}


def main() -> None:
    wheels, models, scratch = map(Path, sys.argv[1:])
    environment = scratch / "environment"
    venv.create(environment, with_pip=True)
    python, program = environment / "bin" / "python", environment / "bin" / "llama-collector"
    install = ("install", "-q", "--no-compile", "--no-index", "--find-links", wheels)
    call(python, "-m", "pip", "--isolated", *install, "llama-collector")
    call(python, "-m", "pip", "--isolated", "check")
    compile_without_warnings(python, environment)
    assert "usage: llama-collector" in call(program, "--help")
    assert call(program, "--version").startswith("llama-collector ")
    assert "write /etc/systemd/system/llama-collector.service" in call(program, "install", "--dry-run")
    collect(program, scratch, models)
    print(".".join(map(str, sys.version_info[:3])))


def call(*command: "str | Path") -> str:
    """Return what a command prints; it must succeed, and the collector must use nothing deprecated.

    Warnings are found in the output, because Python's filters match whole module names only.
    """
    ended = subprocess.run(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert ended.returncode == 0, f"{command} ended with {ended.returncode}:\n{ended.stdout}"
    check_no_warning(ended.stdout)
    return ended.stdout


def check_no_warning(output: str) -> None:
    ours = [line for line in output.splitlines() if "/collector/" in line and "Warning:" in line]
    assert not ours, ours


def compile_without_warnings(python: Path, environment: Path) -> None:
    """Compile the package: a newer Python warns of some code only then, and pip hides it."""
    (package,) = environment.glob("lib/python3.*/site-packages/collector")
    call(python, "-W", "error", "-m", "compileall", "-q", "-f", package)


def collect(program: Path, scratch: Path, models: Path) -> None:
    """Run `check`, then `run` until samples and models are in the database."""
    database, settings = scratch / "collected.db", scratch / "collector.toml"
    settings.write_text(
        f'[database]\npath = "{database}"\nflush_interval = 1\n'
        f'[sampling]\ninterval = 1\n[models]\ndirectory = "{models}"\n'
        '[llama_server]\nurl = ""\n'
    )
    call(program, "--config", settings, "check")
    # Nothing listens on port 9: the HTTP client is used and reports it.
    settings.write_text(settings.read_text().replace('url = ""', 'url = "http://127.0.0.1:9"'))
    process = subprocess.Popen(
        [program, "--config", settings, "run"], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    try:
        for table in ("metrics", "host_metrics", "models"):
            wait_for_row(database, table, process)
        process.send_signal(signal.SIGTERM)
        output = process.communicate(timeout=WAIT_SECONDS)[1]
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert "Traceback" not in output, output
    check_no_warning(output)


def wait_for_row(database: Path, table: str, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if has_row(database, table):
            return
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f"no row of {table}: {process.communicate()[1]}")


def has_row(database: Path, table: str) -> bool:
    if not database.exists():
        return False
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5)) as reader:
        try:
            return reader.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() is not None
        except sqlite3.OperationalError as error:
            assert "no such table" in str(error), error
            return False


if __name__ == "__main__":
    main()
