"""`check`: looks at the settings and at everything they point at, and says what to change."""

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

from collector.commands.access import obstacles
from collector.database.collector_lock import running_collector
from collector.database.connection import check_integrity, connect_read_only, translate_sqlite_errors
from collector.errors import CollectorError, DatabaseError, SourceAbsent
from collector.schema import BYTES_PER_MB
from collector.settings import Settings, absolute, find_settings_file, load_settings, read_api_key
from collector.sources.base import Tick
from collector.sources.disk import DiskSource
from collector.sources.gpu.source import GpuSource
from collector.sources.llama.processes import LlamaProcess, LlamaProcessSource

_LOW_DISK_MB = 1024
_SECRET_OPTIONS = ("--api-key", "--api-key-file", "--hf-token", "-hft")


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found: good, worth knowing (`note`), or a problem with its remedy in the message."""

    kind: str
    message: str


def good(message: str) -> Finding:
    """All is well."""
    return Finding("ok", message)


def note(message: str) -> Finding:
    """Worth knowing, and no fault."""
    return Finding("note", message)


def problem(message: str) -> Finding:
    """Something to change."""
    return Finding("problem", message)


def run_checks(named_file: Path | None, reader: str | None = None, *, full: bool = False) -> bool:
    """Print one line a check; whether no problem was found.

    Args:
        named_file: the settings; None for the default ones.
        reader: a user of this machine; only whether that user can read the database is checked.
        full: whether the whole database is read for damage as well.

    Raises:
        SettingsError: the settings are wrong: nothing else can be checked.
        CollectorError: what the reader would meet cannot be seen.
    """
    file = find_settings_file(named_file)
    settings = load_settings(file)
    print(_line("settings", good(str(file) if file else "defaults (there is no settings file)")))
    sound = True
    checks = _CHECKS if reader is None else (("reader", partial(_check_reader, reader)),)
    for subject, check in (*checks, ("damage", _check_damage)) if full else checks:
        for finding in check(settings):
            print(_line(subject, finding), flush=True)
            sound = sound and finding.kind != "problem"
    print("no problem found" if sound else "there are problems: see above")
    return sound


def _line(subject: str, finding: Finding) -> str:
    colour = {"ok": "32", "note": "33", "problem": "31"}[finding.kind]
    mark = f"\x1b[{colour}m{finding.kind:<8}\x1b[0m" if sys.stdout.isatty() else f"{finding.kind:<8}"
    return f"{mark} {subject:<14} {finding.message}"


def _check_database(settings: Settings) -> Iterator[Finding]:
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
    path = settings.database_path
    obstacle = None
    for obstacle in obstacles(path, reader):
        yield problem(f"{obstacle.reason}\n    {obstacle.command}")
    if obstacle is None:
        yield good(f"{reader} can read {path}")
    if path.with_name(f"{path.name}-journal").exists() and not running_collector(path):
        yield problem(f"{path} was left in the middle of a write: start the collector, which completes it")


def _check_disk(settings: Settings) -> Iterator[Finding]:
    directory = next(parent for parent in settings.database_path.parents if parent.exists())
    free_mb = DiskSource(directory).read(Tick(0)).detail.free_mb
    if free_mb < _LOW_DISK_MB:
        yield problem(f"only {free_mb:,.0f} MB are free for the database in {directory}: free some space")
    else:
        yield good(f"{free_mb / 1024:,.1f} GB free for the database")


def _check_models(settings: Settings) -> Iterator[Finding]:
    for directory in settings.models_directories:
        if barrier := _barrier(directory):
            yield problem(f"{directory}: this user may not enter {barrier}: {_entry_command(barrier)}")
        elif not directory.is_dir():
            yield note(f"{directory} is no directory: name yours in [models] directory")
        elif not os.access(directory, os.R_OK | os.X_OK):
            yield problem(
                f"{directory} cannot be read by this user: chmod o+rx {shlex.quote(str(directory))}"
            )
        else:
            yield good(str(directory))


def _barrier(path: Path) -> Path | None:
    """The first directory on the way to a path that this user may not enter."""
    return next((p for p in reversed(path.parents) if p.is_dir() and not os.access(p, os.X_OK)), None)


def _entry_command(directory: Path) -> str:
    user = pwd.getpwuid(os.geteuid()).pw_name
    return f"sudo setfacl -m u:{user}:x {shlex.quote(str(directory))}"


def _check_logs(settings: Settings) -> Iterator[Finding]:
    for pattern in settings.logs.files:
        files = [Path(name) for name in glob.glob(str(absolute(pattern)))]  # noqa: PTH207 - an absolute pattern
        if not files:
            yield note(
                f"{pattern}: no such file yet; start llama-server with --log-file, or mend [logs] files"
            )
        for file in files:
            if os.access(file, os.R_OK):
                yield good(str(file))
            else:
                yield problem(f"{file} cannot be read by this user: chmod o+r {shlex.quote(str(file))}")
    for unit in settings.logs.journal_units:
        yield _journal(unit)


def _journal(unit: str) -> Finding:
    command = ["journalctl", "--quiet", "--lines=1", f"--unit={unit}"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        return problem(f"journalctl cannot be run ({error}): take {unit} out of [logs] journal_units")
    if ended.stdout.strip():
        return good(f"the journal holds lines of {unit}")
    if ended.returncode or ended.stderr.strip():
        return problem(
            f"the journal cannot be read ({ended.stderr.strip():.200}): "
            "add this user to its group (usermod --append --groups systemd-journal USER)"
        )
    return note(f"the journal holds no line of {unit} that this user may read")


def _check_gpu(settings: Settings) -> Iterator[Finding]:
    if not settings.gpu.enabled:
        yield note("switched off by [gpu] enabled = false")
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
    server = settings.llama_server
    source, tick = LlamaProcessSource(server.process_name), Tick(int(time.time()))
    processes = tick.read(source).detail
    if processes:
        listed = ", ".join(f"process {process.pid} on port {process.port}" for process in processes)
        yield good(f"{server.process_name}: {listed}")
    else:
        yield note(
            f"no process is called {server.process_name!r}: start it, or change [llama_server] process_name"
        )
    if server.url:
        yield _answer(settings, source, tick)


def _answer(settings: Settings, processes: LlamaProcessSource, tick: Tick) -> Finding:
    from collector.sources.llama.http import Address
    from collector.sources.llama.runs import ServerRuns
    from collector.sources.llama.single import process_at
    from collector.sources.registry import build_llama_server

    server = settings.llama_server
    address = Address(server.url, read_api_key(server), server.timeout)
    source = build_llama_server(address, processes, None, None, ServerRuns(lambda *_: []))
    try:
        state = tick.read(source).state
    finally:
        source.close()
    if state.name == "up":
        return good(f"{server.url} answers with its metrics")
    message = f"{server.url}: {state.name}: {state.message}"
    reading = tick.reading_of(processes)
    process = process_at(server.url, reading.detail) if reading else None
    if state.name == "metrics off" and process and process.arguments:
        message += f", that is:\n    {_command_line(process)} --metrics"
    return note(message) if state.success else problem(message)


def _command_line(process: LlamaProcess) -> str:
    """As it was started, without its secrets."""
    words = list(process.arguments)
    for position, word in enumerate(words):
        option, equals, _value = word.partition("=")
        if option in _SECRET_OPTIONS:
            if equals:
                words[position] = f"{option}=***"
            elif position + 1 < len(words):
                words[position + 1] = "***"
    return shlex.join(words)


_CHECKS: tuple[tuple[str, Callable[[Settings], Iterator[Finding]]], ...] = (
    ("database", _check_database),
    ("disk", _check_disk),
    ("models", _check_models),
    ("logs", _check_logs),
    ("gpu", _check_gpu),
    ("llama-server", _check_llama_server),
)
