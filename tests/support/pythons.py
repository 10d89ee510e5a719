"""Pythons of other versions: those of this machine, else those of a Debian release that contains them."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.container import debian

DEBIAN_SUITE = "forky"
"""Contains Python 3.13 and 3.14. It is never booted: only its Python runs."""

DEBIAN_PYTHONS = ("3.13", "3.14")
_PACKAGES = tuple(f"python{version}-venv" for version in DEBIAN_PYTHONS)


class NoSuchPython(Exception):  # noqa: N818 - named after the condition
    """This version is not available here; the message says what was tried."""


@dataclass(frozen=True, slots=True)
class Python:
    """A Python that can run a script of ours.

    Args:
        command: starts it; it can use files only in the `directory` given to `find_python`.
    """

    command: Sequence[str | Path]

    def run(self, *arguments: str | Path) -> str:
        """Run a script and return what it prints.

        Raises:
            AssertionError: it ended with another code than 0.
        """
        ended = subprocess.run(
            [*self.command, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout


def find_python(version: str, directory: Path) -> Python:
    """Return a Python of a version like `3.12`.

    Args:
        version: major and minor.
        directory: contains all files that it will read and write.

    Raises:
        NoSuchPython: this machine has none, and Debian's cannot be used.
    """
    for candidate in _candidates(version):
        if _version(candidate) == version:
            return Python((candidate,))
    if version not in DEBIAN_PYTHONS:
        raise NoSuchPython(f"no Python {version} on the PATH, in ~/.pyenv or known to uv")
    if os.geteuid() != 0 or not shutil.which("debootstrap") or not shutil.which("systemd-nspawn"):
        raise NoSuchPython(
            f"no Python {version} here, and Debian {DEBIAN_SUITE}'s needs root and "
            "apt-get install debootstrap systemd-container"
        )
    if platform.freedesktop_os_release()["ID"] != "debian":
        raise NoSuchPython(f"no Python {version} here, and this machine's packages are not Debian's")
    root = debian(DEBIAN_SUITE, _PACKAGES)
    return Python((
        *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--pipe", "--read-only"),
        *(f"--directory={root}", f"--bind={directory}", f"--machine={f'python-{version}'.replace('.', '-')}"),
        *("--private-network", "--", f"/usr/bin/python{version}"),
    ))  # fmt: skip


def _candidates(version: str) -> list[str | Path]:
    found: list[str | Path | None] = [sys.executable, shutil.which(f"python{version}")]
    found += sorted(Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python3"))
    if uv := shutil.which("uv"):
        ended = subprocess.run([uv, "python", "find", version], capture_output=True, text=True, check=False)
        found.append(ended.stdout.strip() or None)
    return [candidate for candidate in found if candidate]


def _version(python: str | Path) -> str:
    """Return the version that a Python reports: a name on the PATH may be a shim of pyenv without a Python."""
    script = "import sys, venv, ensurepip; print('{}.{}'.format(*sys.version_info))"
    return subprocess.run([python, "-c", script], capture_output=True, text=True, check=False).stdout.strip()
