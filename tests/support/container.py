"""A small Debian that boots a real systemd, as root, in `systemd-nspawn`.

Its root directory is made by `debootstrap` once, from the package sources of this machine, and kept in the
cache folder of the tests; each container starts from a copy.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from tests.support.cache import build_once
from tests.support.paths import ROOT

PACKAGES = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "python3-venv",
    "procps",
    "sudo",
    "sqlite3",
    "libgomp1",
    "iproute2",
)
CLONE, WHEELS = "/clone", "/wheels"
WAIT_SECONDS = 60

Value = TypeVar("Value")


def wait_for(get: Callable[[], Value], what: object = "", seconds: float = WAIT_SECONDS) -> Value:
    """Poll until a function returns something true: there are no events from inside the container."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := get():
            return value
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {what() if callable(what) else what}")


class Container:
    """A booted Debian with this repository in `/clone`, until the end of the `with` block.

    Args:
        directory: for its root directory.
    """

    def __init__(self, directory: Path) -> None:
        self.root = directory / "root"
        self._log = directory / "console.log"
        self._wheels = directory / "wheels"
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._first_process = 0

    def __enter__(self) -> Self:
        for tool in ("debootstrap", "systemd-nspawn"):
            if shutil.which(tool) is None or os.geteuid() != 0:
                raise RuntimeError(
                    f"root and {tool} are needed: apt-get install debootstrap systemd-container"
                )
        subprocess.run(["cp", "-a", "--reflink=auto", template(), self.root], check=True)
        _download_wheels(self._wheels, self._python_version())
        (self.root / "etc/pip.conf").write_text(f"[global]\nno-index = true\nfind-links = {WHEELS}\n")
        (self.root / "etc/hosts").write_text(
            f"127.0.0.1 localhost {(self.root / 'etc/hostname').read_text()}"
        )
        self.boot()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._nspawn
        if self._nspawn.poll() is None:
            self._nspawn.terminate()  # an orderly shutdown
            try:
                self._nspawn.wait(WAIT_SECONDS)
            except subprocess.TimeoutExpired:
                self._nspawn.kill()
                self._nspawn.wait()
        shutil.rmtree(self.root)  # half a gigabyte, of which pytest would keep three

    def boot(self) -> None:
        """Start the container and wait until systemd has started everything."""
        with self._log.open("ab") as log:
            self._nspawn = subprocess.Popen(
                ["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--console=pipe",
                 "--machine=llama-collector-test", f"--directory={self.root}", "--private-network",
                 "--system-call-filter=bpf", "--capability=CAP_BPF",  # with which IPAddressDeny= works
                 f"--bind-ro={ROOT}:{CLONE}", f"--bind-ro={self._wheels}:{WHEELS}"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self._first_process = wait_for(self._find_first_process, self._log.read_text)
        wait_for(self._is_running, self._log.read_text)
        self._open_cgroups()

    def reboot(self) -> None:
        """Let systemd shut down for a reboot, and boot again."""
        assert self._nspawn
        self.call("systemctl", "reboot", check=False)
        self._nspawn.wait(WAIT_SECONDS)
        self.boot()

    def call(
        self, *command: str, check: bool = True, user: str = "", stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the container, as root or as another user."""
        as_user = ["runuser", "-u", user, "--"] if user else []
        ended = subprocess.run(
            ["nsenter", f"--target={self._first_process}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup",
             "--", "env", "--ignore-environment", "--chdir=/", "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
             "LANG=C.UTF-8", *as_user, *command],
            input=stdin, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ended.returncode == 0 or not check, f"{command}: {ended.stdout}{ended.stderr}"
        return ended

    def shell(self, script: str, *, check: bool = True, user: str = "") -> str:
        """Run a script of bash and return what it printed."""
        return self.call("bash", "-euo", "pipefail", "-c", script, check=check, user=user).stdout

    def write(self, path: str, text: str) -> None:
        """Write a file in the container."""
        self.call("bash", "-c", 'mkdir -p "$(dirname "$1")" && cat >"$1"', "-", path, stdin=text)

    def show(self, unit: str, *properties: str) -> Sequence[str]:
        """Return properties of a unit, as systemd reports them."""
        text = self.call("systemctl", "show", f"--property={','.join(properties)}", unit).stdout
        values = dict(line.split("=", 1) for line in text.splitlines())
        return [values[name] for name in properties]

    def query(self, statement: str, *, database: str, user: str = "") -> list[dict[str, object]]:
        """Return rows as a reader with the sqlite3 shell sees them."""
        text = self.call(
            "sqlite3", "-readonly", "-json", "-cmd", ".timeout 5000", database, statement, user=user
        ).stdout
        rows: list[dict[str, object]] = json.loads(text or "[]")
        return rows

    def _python_version(self) -> str:
        return (self.root / "usr/bin/python3").readlink().name.removeprefix("python")

    def _find_first_process(self) -> int:
        assert self._nspawn
        assert self._nspawn.poll() is None, self._log.read_text()
        for process in _descendants(self._nspawn.pid):
            status = Path(f"/proc/{process}/status").read_text()
            spaces = next(line.split() for line in status.splitlines() if line.startswith("NSpid:"))
            if spaces[-1] == "1" and Path(f"/proc/{process}/comm").read_text() == "systemd\n":
                return process
        return 0

    def _is_running(self) -> bool:
        state = self.call("systemctl", "is-system-running", check=False).stdout.strip()
        return state in ("running", "degraded")

    def _open_cgroups(self) -> None:
        """Let systemd write control groups of version 1, without which its limits have no effect there."""
        self.shell(
            "for controller in memory pids devices cpu blkio; do\n"
            '  if [ -d "/sys/fs/cgroup/$controller" ]; then mount -o remount,rw,bind "/sys/fs/cgroup/$controller"; fi\n'
            "done\n"
            "systemctl daemon-reexec"
        )
        wait_for(self._is_running)


def _descendants(process: int) -> list[int]:
    children = [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return children + [further for child in children for further in _descendants(child)]


def template() -> Path:
    """Return the root directory to copy, of this machine's own release."""
    return debian(platform.freedesktop_os_release()["VERSION_CODENAME"], PACKAGES)


def debian(suite: str, packages: Sequence[str]) -> Path:
    """Return a root directory that is not to be changed; it is made where the cache does not contain it."""
    key = hashlib.sha256(" ".join(packages).encode()).hexdigest()[:12]

    def build(root: Path) -> None:
        _run(
            "debootstrap", "--variant=minbase", f"--include={','.join(packages)}", suite, root, _mirror(),
            "/usr/share/debootstrap/scripts/sid",  # as for every Debian, also one newer than debootstrap
        )  # fmt: skip

    return build_once(f"{suite}-{key}", build)


def _mirror() -> str:
    """Return the address of this machine's packages, where those of other releases are too."""
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
    filters = ["Created-By: Packages", f"Release: {suite}", "Component: main"]
    return _run("apt-get", "indextargets", "--format", "$(REPO_URI)", *filters).splitlines()[0]


def _download_wheels(directory: Path, python: str) -> None:
    """Download all that `pip install .` and llama-server need: the container has no network."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"], "xllamacpp>=2026.10"]
    _run(sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", f"--python-version={python}",
         f"--dest={directory}", *wanted)  # fmt: skip


def _run(*command: str | Path) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{command}: {ended.stdout[-2000:]}{ended.stderr[-2000:]}"
    return ended.stdout
