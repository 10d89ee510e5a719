"""Pythons of other versions: of this machine, else of a Debian that has them."""

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
"""Has Python 3.13 and 3.14, and boots nowhere here: only its Python is used."""

DEBIAN_PYTHONS = ("3.13", "3.14")
_PACKAGES = tuple(f"python{version}-venv" for version in DEBIAN_PYTHONS)


class NoSuchPython(Exception):  # noqa: N818 - it says what is the case
    """This version cannot be had here; the message says what was tried."""


@dataclass(frozen=True, slots=True)
class Python:
    """A Python that can run a script of ours.

    Args:
        command: starts it; folders that it is given must lie in `directory`.
    """

    command: Sequence[str | Path]

    def run(self, *arguments: str | Path) -> str:
        """What it prints.

        Raises:
            AssertionError: it ended with another code than 0.
        """
        ended = subprocess.run(
            [*self.command, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout


def find_python(version: str, directory: Path) -> Python:
    """A Python of a version, like `3.12`.

    Args:
        version: major and minor.
        directory: all that it is to read and write lies in here.

    Raises:
        NoSuchPython: there is none.
    """
    for candidate in _candidates(version):
        if _version(candidate) == version:
            return Python((candidate,))
    if version not in DEBIAN_PYTHONS:
        raise NoSuchPython(f"no Python {version} on the PATH, in ~/.pyenv or known to uv")
    if os.geteuid() != 0 or not shutil.which("debootstrap") or not shutil.which("systemd-nspawn"):
        raise NoSuchPython(
            f"no Python {version} here, and to take it from Debian {DEBIAN_SUITE} needs root and "
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
    """What it says itself: a name on the PATH may be one of pyenv's that leads to none."""
    script = "import sys, venv, ensurepip; print('{}.{}'.format(*sys.version_info))"
    return subprocess.run([python, "-c", script], capture_output=True, text=True, check=False).stdout.strip()
