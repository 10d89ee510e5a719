"""The parent's side of `header_process`: starts it, sends one path at a time, replaces it when it fails."""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import collector
from collector.errors import SourceFailed, Stopped

ANSWER_TIMEOUT_SECONDS = 60.0
"""For one file. A header needs 0.1 s; a disk that spins up, or a network, needs longer."""

_STOP_LATENCY_SECONDS = 0.2
_EXIT_TIMEOUT_SECONDS = 2.0
_ATTEMPTS = 2  # the kernel may have killed the process because memory was short elsewhere

# The child is isolated (-I): `random.py` or `gguf.py` in the working directory, or a directory in PYTHONPATH,
# must not be imported, least of all by root. The package itself may be in a checkout that is not installed;
# its directory comes last, so that nothing in it hides another module.
_PROGRAM = (
    "import sys; sys.path.append(sys.argv[1]); from collector.models.header_process import main; main()"
)
_PACKAGE_DIRECTORY = str(Path(__file__).resolve().parents[2])

READER_VERSION = f"collector {collector.__version__}, gguf {version('gguf')}"
"""Changes when files that could not be understood may be understood."""

Verdict = Literal["model", "part", "other", "broken", "unreadable"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What one file is.

    Args:
        verdict: `broken` if its content is wrong, `unreadable` if it cannot be read at the moment, otherwise
            `Facts.kind`.
        reason: why it is not a model; empty for a model.
        columns: of `models`; None where the header does not name a value.
        foreign: it is broken because it is of another format.
        timed_out: it is unreadable because no answer came in time.
        over_limit: it is unreadable because it ended the process that read it, or exceeded its limits. That
            may have had another cause, such as too little memory: it is tried again, less and less often.
    """

    verdict: Verdict
    reason: str = ""
    columns: Mapping[str, int | str | None] = field(default_factory=dict)
    foreign: bool = False
    timed_out: bool = False
    over_limit: bool = False


class HeaderReader:
    """Reads headers in a child process, which it starts with the first file.

    Args:
        stop: ends every wait.
        timeout_seconds: for one answer.
    """

    def __init__(self, stop: threading.Event, timeout_seconds: float = ANSWER_TIMEOUT_SECONDS) -> None:
        self._stop = stop
        self._timeout_seconds = timeout_seconds
        self._process: subprocess.Popen[bytes] | None = None

    def read(self, path: str) -> Answer:
        """Return what a file is, by its header.

        Raises:
            Stopped: `stop` was set.
            SourceFailed: the child process cannot be started.
        """
        exit_code = 0
        for _ in range(_ATTEMPTS):
            process = self._start()
            assert process.stdin
            try:
                process.stdin.write(json.dumps(path).encode() + b"\n")
                values: dict[str, Any] = json.loads(self._read_line(process))
            except TimeoutError:
                self.close()
                reason = f"could not be read within {self._timeout_seconds:.0f} seconds"
                return Answer("unreadable", reason, timed_out=True)
            except (EOFError, BrokenPipeError):
                exit_code = self._kill(process)
                if exit_code == -signal.SIGXCPU:
                    reason = "has a header that takes longer to read than any real one"
                    return Answer("unreadable", reason, over_limit=True)
                continue
            if "broken" in values:
                return Answer("broken", values["broken"], foreign=values["foreign"])
            if "unreadable" in values:
                return Answer("unreadable", values["unreadable"], over_limit=values["over_limit"])
            return Answer(values["kind"], values["reason"], values["columns"])
        reason = f"ended the process that read it (exit code {exit_code})"
        return Answer("unreadable", reason, over_limit=True)

    def close(self) -> None:
        """End the child process."""
        if self._process:
            self._kill(self._process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> subprocess.Popen[bytes]:
        """Return the child process, starting it and waiting until it is ready if there is none."""
        if self._process:
            return self._process
        try:
            self._process = subprocess.Popen(  # noqa: S603 - a constant program
                [sys.executable, "-I", "-c", _PROGRAM, _PACKAGE_DIRECTORY],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,  # Ctrl-C must reach only the parent
                # By default numpy reserves memory for each core.
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
            )
        except OSError as error:
            raise SourceFailed(f"cannot start a process to read headers: {error.strerror}") from error
        try:
            self._read_line(self._process)
        except (EOFError, TimeoutError) as error:
            self.close()
            raise SourceFailed(
                "the process that reads the headers of models does not start: "
                f"{sys.executable} -m collector.models.header_process shows why"
            ) from error
        return self._process

    def _read_line(self, process: subprocess.Popen[bytes]) -> bytes:
        """Return the line that the process writes next. Nothing follows it before the next request.

        Raises:
            EOFError: the process ended.
            TimeoutError: it wrote no line in time.
            Stopped: `stop` was set.
        """
        assert process.stdout
        readable = select.poll()
        readable.register(process.stdout, select.POLLIN)
        deadline = time.monotonic() + self._timeout_seconds
        line = b""
        while not line.endswith(b"\n"):
            if self._stop.is_set():
                raise Stopped
            if time.monotonic() > deadline:
                raise TimeoutError
            if readable.poll(_STOP_LATENCY_SECONDS * 1000):
                piece = os.read(process.stdout.fileno(), 65_536)
                if not piece:
                    raise EOFError
                line += piece
        return line

    def _kill(self, process: subprocess.Popen[bytes]) -> int:
        """Kill the process and return its exit code.

        A process that waits for a disk in the kernel ends only when that wait is over: then do not wait for
        it, and return 0.
        """
        self._process = None
        process.kill()
        for pipe in (process.stdin, process.stdout):
            assert pipe
            pipe.close()
        try:
            return process.wait(_EXIT_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            return 0
