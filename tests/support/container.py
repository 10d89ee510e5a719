"""A small Debian that boots a real systemd, as root, in `systemd-nspawn`.

Its root directory is made by `debootstrap` once, from the package sources of this machine, and kept beside
the builds of llama-server (see `tests.support.llama_build`); each container starts from a copy.
"""

import fcntl
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

ROOT = Path(__file__).parents[2]
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
    """Poll until something true comes back; nothing tells when another system is so far."""
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
        subprocess.run(["cp", "-a", "--reflink=auto", _template(), self.root], check=True)
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
        """Start it and wait until systemd has started everything."""
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
        """Run a command in it, as root or as another user."""
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
        """Run a script of bash; what it printed."""
        return self.call("bash", "-euo", "pipefail", "-c", script, check=check, user=user).stdout

    def write(self, path: str, text: str) -> None:
        """Put a file into it."""
        self.call("bash", "-c", 'mkdir -p "$(dirname "$1")" && cat >"$1"', "-", path, stdin=text)

    def show(self, unit: str, *properties: str) -> Sequence[str]:
        """Properties of a unit, as systemd tells them."""
        text = self.call("systemctl", "show", f"--property={','.join(properties)}", unit).stdout
        values = dict(line.split("=", 1) for line in text.splitlines())
        return [values[name] for name in properties]

    def query(self, statement: str, *, database: str, user: str = "") -> list[dict[str, object]]:
        """Rows as a reader with the sqlite3 shell sees them."""
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
        """On a machine with the old control groups, their limits hold only where systemd may write them."""
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


def _template() -> Path:
    """The root directory to copy, of this machine's own release."""
    return debian(platform.freedesktop_os_release()["VERSION_CODENAME"], PACKAGES)


def debian(suite: str, packages: Sequence[str]) -> Path:
    """A root directory that is not to be changed; made where the cache does not hold it."""
    cache = Path(os.environ.get("LLAMA_COLLECTOR_TEST_CACHE", "~/.cache/llama-collector-tests")).expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(" ".join(packages).encode()).hexdigest()[:12]
    template = cache / f"{suite}-{key}"
    with (cache / f"{template.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs at once make it once
        if not template.exists():
            scratch = template.with_suffix(".new")
            shutil.rmtree(scratch, ignore_errors=True)
            _run(
                "debootstrap",
                "--variant=minbase",
                f"--include={','.join(packages)}",
                suite,
                scratch,
                _mirror(),
                "/usr/share/debootstrap/scripts/sid",  # as for every Debian, also one newer than debootstrap
            )
            scratch.rename(template)
    return template


def _mirror() -> str:
    """Where this machine gets the packages of its own release, and where those of others lie too."""
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
    filters = ["Created-By: Packages", f"Release: {suite}", "Component: main"]
    return _run("apt-get", "indextargets", "--format", "$(REPO_URI)", *filters).splitlines()[0]


def _download_wheels(directory: Path, python: str) -> None:
    """Everything that `pip install .` and llama-server need: the container reaches no network."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"], "xllamacpp>=2026.10"]
    _run(sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", f"--python-version={python}",
         f"--dest={directory}", *wanted)  # fmt: skip


def _run(*command: str | Path) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{command}: {ended.stdout[-2000:]}{ended.stderr[-2000:]}"
    return ended.stdout
