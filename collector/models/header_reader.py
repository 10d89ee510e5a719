"""The daemon's side of `header_process`: asks for one file at a time, whatever becomes of the process."""

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
from types import TracebackType
from typing import Any, Literal, Self

from collector.errors import SourceFailed, Stopped

PATIENCE_SECONDS = 60.0
"""For one answer. A header takes 0.1 s; a disk that wakes up or a network takes longer."""

_STOP_LATENCY_SECONDS = 0.2
_END_SECONDS = 2.0
_ATTEMPTS = 2  # the kernel may have killed the process for want of memory elsewhere

Verdict = Literal["model", "part", "other", "broken", "unreadable"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a file is.

    Args:
        verdict: `broken` by its content, `unreadable` just now, or what `Facts` calls its kind.
        reason: of a verdict that says that it is no model.
        columns: of `models`; None where the header does not say.
        foreign: broken since it is of another format.
        timed_out: unreadable since no answer came in time.
    """

    verdict: Verdict
    reason: str = ""
    columns: Mapping[str, int | str | None] = field(default_factory=dict)
    foreign: bool = False
    timed_out: bool = False


class HeaderReader:
    """Reads headers in a process of its own, which starts with the first file.

    Args:
        stop: ends every wait.
        patience_seconds: for one answer.
    """

    def __init__(self, stop: threading.Event, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._stop = stop
        self._patience_seconds = patience_seconds
        self._process: subprocess.Popen[bytes] | None = None

    def read(self, path: str) -> Answer:
        """What the file is.

        Raises:
            Stopped: `stop` was set.
            SourceFailed: the reading process cannot be started.
        """
        exit_code = 0
        for _ in range(_ATTEMPTS):
            process = self._running()
            try:
                return _answer(self._ask(process, path))
            except TimeoutError:
                self.close()
                reason = f"could not be read within {self._patience_seconds:.0f} seconds"
                return Answer("unreadable", reason, timed_out=True)
            except (EOFError, BrokenPipeError):
                exit_code = self._end(process)
            if exit_code == -signal.SIGXCPU:
                return Answer("broken", "has a header that takes longer to read than any real one")
        return Answer("broken", f"ended the process that read it (exit code {exit_code})")

    def close(self) -> None:
        """End the process."""
        if self._process:
            self._end(self._process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._process = _start()
            try:
                self._line(self._process)
            except (EOFError, TimeoutError) as error:
                self.close()
                raise SourceFailed(
                    "the process that reads the headers of models does not start: "
                    f"{sys.executable} -m collector.models.header_process shows why"
                ) from error
        return self._process

    def _ask(self, process: subprocess.Popen[bytes], path: str) -> dict[str, Any]:
        assert process.stdin
        process.stdin.write(json.dumps(path).encode() + b"\n")
        values: dict[str, Any] = json.loads(self._line(process))
        return values

    def _line(self, process: subprocess.Popen[bytes]) -> bytes:
        """The next line; the process says one thing at a time.

        Raises:
            EOFError: the process ended.
            TimeoutError: it said nothing in time.
            Stopped: `stop` was set.
        """
        assert process.stdout
        readable = select.poll()
        readable.register(process.stdout, select.POLLIN)
        deadline = time.monotonic() + self._patience_seconds
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

    def _end(self, process: subprocess.Popen[bytes]) -> int:
        """Kill the process; its exit code, 0 where it hangs in the kernel and ends when that lets it go."""
        self._process = None
        process.kill()
        for pipe in (process.stdin, process.stdout):
            assert pipe
            pipe.close()
        try:
            return process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return 0


def _start() -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "collector.models.header_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for the parent
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # else numpy reserves memory for each core
        )
    except OSError as error:
        raise SourceFailed(f"cannot start a process to read headers: {error.strerror}") from error


def _answer(values: dict[str, Any]) -> Answer:
    if "broken" in values:
        return Answer("broken", values["broken"], foreign=values["foreign"])
    if "unreadable" in values:
        return Answer("unreadable", values["unreadable"])
    return Answer(values["kind"], values["reason"], values["columns"])
