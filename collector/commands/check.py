"""`check`: checks the settings and everything that they name, and prints what to change."""

import argparse
import glob
import os
import pwd
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from collector.database.access import find_obstacles
from collector.database.connection import (
    check_integrity,
    connect_read_only,
    is_in_wal_mode,
    translate_sqlite_errors,
)
from collector.database.locks.collector_lock import running_collector
from collector.errors import CollectorError, DatabaseError, SourceAbsent
from collector.logs.journal.units import Unit
from collector.parsers.command_line import mask_secrets
from collector.schema import BYTES_PER_MB
from collector.settings import Settings, absolute, find_settings_file, load_settings, read_api_key
from collector.sources.base import Tick
from collector.sources.disk import DiskSource
from collector.sources.gpu.source import GpuSource
from collector.text import printable, say

_LOW_DISK_MB = 1024


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Args:
        kind: `ok`, `note` (worth knowing, but no fault) or `problem`.
        message: what was found and, for a problem, what to change.
    """

    kind: str
    message: str


def good(message: str) -> Finding:
    """Return a finding of something that needs no change."""
    return Finding("ok", message)


def note(message: str) -> Finding:
    """Return a finding that is worth knowing but is no fault."""
    return Finding("note", message)


def problem(message: str) -> Finding:
    """Return a finding of something that must be changed."""
    return Finding("problem", message)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `check`."""
    parser.add_argument(
        "--as", dest="reader", metavar="USER", help="check only whether USER can read the database"
    )
    parser.add_argument("--full", action="store_true", help="also check the whole database for damage")


def run(options: argparse.Namespace) -> int:
    """Run the checks; the exit code is 1 if there is a problem."""
    return 0 if run_checks(options.config, options.reader, full=options.full) else 1


def run_checks(named_file: Path | None, reader: str | None = None, *, full: bool = False) -> bool:
    """Print one line for each finding, and return whether none of them is a problem.

    Args:
        named_file: the settings file of the command line; None for the default ones.
        reader: a user of this machine: the only check is then whether that user can read the database.
        full: whether the whole database is checked for damage too.

    Raises:
        SettingsError: the settings are wrong, so nothing else can be checked.
        CollectorError: there is no such reader, or this user may not see the database's directory.
    """
    file = find_settings_file(named_file)
    settings = load_settings(file)
    print(_line("settings", good(str(file) if file else "defaults (there is no settings file)")))
    checks = _CHECKS if reader is None else (("reader", partial(_check_reader, reader)),)
    problems = 0
    for subject, check in (*checks, ("damage", _check_damage)) if full else checks:
        for finding in check(settings):
            print(_line(subject, finding), flush=True)
            problems += finding.kind == "problem"
    say("there are problems: see above" if problems else "no problem found")
    return not problems


def _line(subject: str, finding: Finding) -> str:
    colour = {"ok": "32", "note": "33", "problem": "31"}[finding.kind]
    kind = f"\x1b[{colour}m{finding.kind:<8}\x1b[0m" if sys.stdout.isatty() else f"{finding.kind:<8}"
    message = printable(finding.message, keep="\n")
    return f"{kind} {subject:<14} {message}"


def _check_database(settings: Settings) -> Iterator[Finding]:
    """Check whether this user can read and write the database, or create it."""
    path = settings.database_path
    if owner := running_collector(path):
        yield note(f"a collector is running on it (process {owner})")
    writable = next(parent for parent in path.parents if parent.exists())
    if not os.access(writable, os.W_OK):
        yield problem(f"{writable} cannot be written by this user: change its owner or [database] path")
    if not path.exists():
        yield good(f"{path} will be created")
        return
    try:
        connection = connect_read_only(path)
    except DatabaseError as error:
        yield problem(str(error))
        return
    connection.close()
    if os.access(path, os.W_OK):
        yield good(f"{path}, {path.stat().st_size / BYTES_PER_MB:,.1f} MB")
    else:
        yield problem(f"{path} cannot be written by this user: run as its owner, or change its mode")


def _check_damage(settings: Settings) -> Iterator[Finding]:
    """Check the integrity of the whole database, if it exists."""
    path = settings.database_path
    if not path.exists():
        return
    try:
        with closing(connect_read_only(path)) as connection, translate_sqlite_errors(path):
            check_integrity(connection, path)
        yield good(f"{path} was read in full and is sound")
    except DatabaseError as error:
        yield problem(str(error))


def _check_reader(reader: str, settings: Settings) -> Iterator[Finding]:
    """Check whether another user can read the database, and show the commands that allow it."""
    path = settings.database_path
    obstacles = find_obstacles(path, reader)
    for obstacle in obstacles:
        yield problem(f"{obstacle.reason}\n    {obstacle.command}")
    if not obstacles and is_in_wal_mode(path):
        yield problem(
            f"{path} is in WAL mode, which another program has set: without write permission, {reader} can "
            "read it only while another program has it open. Restart the collector, which undoes that"
        )
    elif not obstacles:
        yield good(f"{reader} can read {path}")
    # SQLite must roll the transaction of a leftover journal back, for which a reader needs write permission.
    if path.with_name(f"{path.name}-journal").exists() and not running_collector(path):
        yield problem(f"{path} has an interrupted transaction: start the collector, which rolls it back")


def _check_disk(settings: Settings) -> Iterator[Finding]:
    """Check the free space for the database."""
    directory = next(parent for parent in settings.database_path.parents if parent.exists())
    free_mb = DiskSource(directory).read(Tick(0)).detail.free_mb
    if free_mb < _LOW_DISK_MB:
        yield problem(f"only {free_mb:,.0f} MB are free for the database in {directory}: free some space")
    else:
        yield good(f"{free_mb / 1024:,.1f} GB free for the database")


def _check_models(settings: Settings) -> Iterator[Finding]:
    """Check whether this user can list the models directories."""
    for directory in settings.models_directories:
        parents = reversed(directory.parents)
        if closed := next((p for p in parents if p.is_dir() and not os.access(p, os.X_OK)), None):
            try:
                user = pwd.getpwuid(os.geteuid()).pw_name
            except KeyError:  # as in a container that runs with a number only
                user = str(os.geteuid())
            command = f"sudo setfacl -m u:{user}:x {shlex.quote(str(closed))}"
            yield problem(f"{directory}: this user may not enter {closed}: {command}")
        elif not directory.is_dir():
            yield note(f"{directory} is no directory: set [models] directory")
        elif not os.access(directory, os.R_OK | os.X_OK):
            yield problem(
                f"{directory} cannot be read by this user: chmod o+rx {shlex.quote(str(directory))}"
            )
        else:
            yield good(str(directory))


def _check_logs(settings: Settings) -> Iterator[Finding]:
    """Check whether this user can read the log files and the journal of each unit."""
    for pattern in settings.logs.files:
        files = [Path(name) for name in glob.glob(str(absolute(pattern)))]  # noqa: PTH207 - an absolute pattern
        if not files:
            yield note(
                f"{pattern}: no such file yet; start llama-server with --log-file, or change [logs] files"
            )
        for file in files:
            if os.access(file, os.R_OK):
                yield good(str(file))
            else:
                yield problem(f"{file} cannot be read by this user: chmod o+r {shlex.quote(str(file))}")
    for unit in settings.logs.journal_units:
        command = ["journalctl", "--quiet", "--lines=1", *Unit.parse(unit).own_matches]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)  # noqa: S603
        except (OSError, subprocess.TimeoutExpired) as error:
            yield problem(f"journalctl cannot be run ({error}): remove {unit} from [logs] journal_units")
            continue
        if ended.stdout.strip():
            yield good(f"the journal contains lines of {unit}")
        elif ended.returncode or ended.stderr.strip():
            yield problem(
                f"the journal cannot be read ({ended.stderr.strip():.200}): "
                "add this user to its group (usermod --append --groups systemd-journal USER)"
            )
        else:
            yield note(
                f"the journal contains no line of {unit} that this user may read: is that its name "
                '(systemctl list-units)? For a container, write "container:NAME"'
            )


def _check_gpu(settings: Settings) -> Iterator[Finding]:
    """Read the GPUs once."""
    if not settings.gpu.enabled:
        yield note("disabled by [gpu] enabled = false")
        return
    source = GpuSource()
    try:
        reading = source.read(Tick(int(time.time())))
        yield good(f"{len(reading.rows)} GPU(s) through NVML. {reading.state.message}".strip())
    except SourceAbsent as error:
        yield note(str(error))
    except CollectorError as error:
        yield problem(str(error))
    finally:
        source.close()


def _check_llama_server(settings: Settings) -> Iterator[Finding]:
    """List the processes of llama-server, and send the requests of one sample to the configured URL."""
    # Imported here because `check --as USER` needs neither httpx nor the time to import it.
    from collector.sources.llama.http import Address
    from collector.sources.llama.local.addresses import process_at
    from collector.sources.llama.processes import LlamaProcessSource
    from collector.sources.llama.runs import ServerRuns
    from collector.sources.registry import build_llama_server

    server = settings.llama_server
    process_source, tick = LlamaProcessSource(server.process_name), Tick(int(time.time()))
    processes = tick.read(process_source).detail
    if processes:
        listed = ", ".join(
            f"process {process.pid}" + (f" on port {process.port}" if process.port else "")
            for process in processes
        )
        yield good(f"{server.process_name}: {listed}")
    else:
        yield note(
            f"no process is called {server.process_name!r}: start it, or change [llama_server] process_name"
        )
    if not server.url:
        return
    address = Address(server.url, read_api_key(server), server.timeout)
    source = build_llama_server(address, process_source, None, None, ServerRuns(lambda *_: []))
    try:
        state = tick.read(source).state
    finally:
        source.close()
    if state.name == "up":
        yield good(f"{server.url} answers with its metrics")
        return
    message = f"{server.url}: {state.name}: {state.message}"
    process = process_at(server.url, processes)
    if (
        state.name == "metrics off" and process and process.arguments
    ):  # show the command line to start it with
        message += f", that is:\n    {shlex.join(mask_secrets(process.arguments))} --metrics"
    yield note(message) if state.success else problem(message)


_CHECKS: tuple[tuple[str, Callable[[Settings], Iterator[Finding]]], ...] = (
    ("database", _check_database),
    ("disk", _check_disk),
    ("models", _check_models),
    ("logs", _check_logs),
    ("gpu", _check_gpu),
    ("llama-server", _check_llama_server),
)
"""The checks without `--as` by subject, in the order of the output."""
