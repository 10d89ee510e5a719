"""`install` and `uninstall`: set up and remove the systemd service. Each step is printed before it is run."""

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from collector.errors import CollectorError

PROGRAM_DIRECTORY = Path("/opt/llama-collector")
SETTINGS_FILE = Path("/etc/llama-collector/collector.toml")
STATE_DIRECTORY = Path("/var/lib/llama-collector")
UNIT = "llama-collector.service"
UNIT_FILE = Path("/etc/systemd/system") / UNIT
SYSUSERS_FILE = Path("/etc/sysusers.d/llama-collector.conf")
TMPFILES_FILE = Path("/etc/tmpfiles.d/llama-collector.conf")

_DEFAULT_PATH = '# path = "data/llama-dashboard.db"     '
_SERVICE_PATH = f'path = "{STATE_DIRECTORY}/llama-dashboard.db"'


@dataclass(frozen=True, slots=True)
class Step:
    """One step of an installation.

    Args:
        text: what the step does, as it is printed.
        action: runs the step; raises OSError or CollectorError.
    """

    text: str
    action: Callable[[], object]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `install` and of `uninstall`."""
    parser.add_argument("--dry-run", action="store_true", help="only print the steps")


def run(options: argparse.Namespace) -> int:
    """Install or uninstall the service."""
    {"install": install, "uninstall": uninstall}[options.command](dry_run=options.dry_run)
    return 0


def install(*, dry_run: bool) -> None:
    """Set up the service and start it, or bring it up to this version and restart it.

    Args:
        dry_run: whether the steps are only printed.

    Raises:
        CollectorError: not root, not installed where the service starts it, or a step failed.
    """
    if not dry_run and Path(sys.prefix) != PROGRAM_DIRECTORY:
        raise CollectorError(
            f"the service runs the program in {PROGRAM_DIRECTORY}, and this one is in {sys.prefix}. First:\n"
            f"  sudo python3 -m venv {PROGRAM_DIRECTORY}\n"
            f"  sudo {PROGRAM_DIRECTORY}/bin/pip install .\n"
            f"  sudo {PROGRAM_DIRECTORY}/bin/llama-collector install"
        )
    if SETTINGS_FILE.exists():
        settings_step = Step(f"keep {SETTINGS_FILE}", lambda: None)
    else:
        settings_step = Step(f"write {SETTINGS_FILE}", partial(_write, SETTINGS_FILE, default_settings()))
    steps = (
        _copy_step("systemd/llama-collector.sysusers", SYSUSERS_FILE),
        _command_step("systemd-sysusers", str(SYSUSERS_FILE)),
        settings_step,
        _copy_step("systemd/llama-collector.tmpfiles", TMPFILES_FILE),
        _command_step("systemd-tmpfiles", "--create", str(TMPFILES_FILE)),
        _copy_step(f"systemd/{UNIT}", UNIT_FILE),
        _command_step("systemctl", "daemon-reload"),
        _command_step("systemctl", "enable", UNIT),
        _command_step("systemctl", "restart", UNIT),  # not `start`, which would continue the old version
    )
    _run_steps(steps, dry_run=dry_run)
    print(f"settings: {SETTINGS_FILE}; after a change: systemctl reload llama-collector")
    print("readers of the database: usermod --append --groups llama-collector USER")


def uninstall(*, dry_run: bool) -> None:
    """Stop the service and remove its files; settings, data and user remain.

    Args:
        dry_run: whether the steps are only printed.

    Raises:
        CollectorError: not root, or a step failed.
    """
    steps = [_command_step("systemctl", "disable", "--now", UNIT)] if UNIT_FILE.exists() else []
    steps += [
        Step(f"remove {file}", partial(file.unlink, missing_ok=True))
        for file in (UNIT_FILE, SYSUSERS_FILE, TMPFILES_FILE)
        if file.exists()
    ]
    steps.append(_command_step("systemctl", "daemon-reload"))
    _run_steps(steps, dry_run=dry_run)
    print(
        f"kept: the settings in {SETTINGS_FILE.parent}, the database in {STATE_DIRECTORY}, the user "
        f"llama-collector, the program in {PROGRAM_DIRECTORY}"
    )


def default_settings() -> str:
    """Return the settings file of a new service: the defaults, with the database in the state directory."""
    return _read_shipped("config/collector.toml").replace(_DEFAULT_PATH, _SERVICE_PATH)


def _run_steps(steps: Iterable[Step], *, dry_run: bool) -> None:
    """Print each step and, except in a dry run, run it."""
    if not dry_run and os.geteuid() != 0:
        raise CollectorError("only root may do this: put sudo before it, or print the steps with --dry-run")
    for step in steps:
        print(step.text, flush=True)
        if dry_run:
            continue
        try:
            step.action()
        except OSError as error:
            raise CollectorError(f"could not {step.text}: {error}") from error


def _copy_step(name: str, target: Path) -> Step:
    """Return the step that writes a data file of the program to a path."""
    return Step(f"write {target}", partial(_write, target, _read_shipped(name)))


def _write(target: Path, text: str) -> None:
    """Write a file completely or not at all, readable by all: tmpfiles.d restricts the settings."""
    target.parent.mkdir(mode=0o755, exist_ok=True)
    new = target.with_name(f".{target.name}.new")
    new.write_text(text)
    new.chmod(0o644)
    new.replace(target)


def _command_step(*words: str) -> Step:
    """Return the step that runs a command."""

    def run_command() -> None:
        ended = subprocess.run(words, stderr=subprocess.PIPE, text=True, check=False)  # noqa: S603
        if ended.returncode != 0:
            raise CollectorError(f"{shlex.join(words)} failed: {ended.stderr.strip() or ended.returncode}")

    return Step(f"run {shlex.join(words)}", run_command)


def _read_shipped(name: str) -> str:
    """Return the content of a data file that is shipped with the program.

    Raises:
        CollectorError: it is not there.
    """
    try:
        return _shipped(name).read_text()
    except OSError as error:
        raise CollectorError(
            f"{error.filename}, which belongs to the program, cannot be read ({error.strerror}): "
            "install the program again (pip install --force-reinstall)"
        ) from error


def _shipped(name: str) -> Path:
    """Return the path of a data file that is shipped with the program.

    In a checkout it is beside the package; in an installation, pip has copied it into the environment.
    """
    checkout = Path(__file__).parents[2] / name
    return checkout if checkout.is_file() else Path(sys.prefix, "share", "llama-collector", name)
