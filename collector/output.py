"""Standard output and standard error, which may be closed, full, or read by nobody.

They belong to whoever started the collector: a terminal that is closed, a pipe whose reader ended or stopped
reading, a file on a full disk. None of that may delay or stop the collection.
"""

import io
import os
import queue
import sys
import threading
import time
from contextlib import suppress

_MAX_WAITING = 1000
"""Texts that wait for a slow reader; more than a collector has to say in a month of trouble."""

_STALLED_SECONDS = 5.0
"""A write that takes longer is reported: nobody reads the output."""

_RETRY_SECONDS = 0.1


def open_missing_streams() -> None:
    """Open /dev/null in the place of each standard stream that is closed.

    Otherwise the next file that is opened gets its number, and what is printed later goes into that file,
    which may be the database. Python's own stream objects are replaced as well: they are None then.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number is used, and the lower ones are open by now.
            os.open(os.devnull, os.O_RDONLY if descriptor == 0 else os.O_WRONLY)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - open until the end
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - open until the end


class BackgroundOutput(io.TextIOBase):
    """A text stream that writes to a descriptor in a thread of its own.

    Whoever writes to it never waits: events are logged while locks are held, and a pipe that nobody reads
    would keep these locks for ever. What cannot be written is dropped: events are in `logs` as well.

    Args:
        descriptor: where the text goes; standard error as a rule.
    """

    def __init__(self, descriptor: int = 2) -> None:
        self._descriptor = descriptor
        self._waiting: queue.Queue[bytes] = queue.Queue(_MAX_WAITING)
        self._error: OSError | None = None
        self._writing_since: float | None = None  # monotonic seconds
        threading.Thread(target=self._write_all, name="output", daemon=True).start()

    def write(self, text: str) -> int:
        """Add text to what waits to be written."""
        with suppress(queue.Full):
            self._waiting.put_nowait(text.encode("utf-8", "backslashreplace"))
        return len(text)

    def isatty(self) -> bool:
        """Return whether the output is a terminal."""
        return os.isatty(self._descriptor)

    @property
    def problem(self) -> str | None:
        """Why the newest text could not be written, as a sentence; None if it was."""
        since = self._writing_since
        if self._error:
            reason = self._error.strerror or str(self._error)
        elif since is not None and time.monotonic() - since > _STALLED_SECONDS:
            reason = "nobody reads it"
        else:
            return None
        return (
            f"standard error cannot be written ({reason}). Events are in the table `logs`; "
            "restart the collector to have them printed again"
        )

    def wait_until_written(self, seconds: float) -> None:
        """Wait until everything is written, at most for this time."""
        deadline = time.monotonic() + seconds
        with self._waiting.all_tasks_done:
            while self._waiting.unfinished_tasks and (rest := deadline - time.monotonic()) > 0:
                self._waiting.all_tasks_done.wait(rest)

    def _write_all(self) -> None:
        while True:
            text = self._waiting.get()
            self._writing_since = time.monotonic()
            try:
                self._write_whole(text)
                self._error = None
            except OSError as error:
                self._error = error
            self._writing_since = None
            self._waiting.task_done()

    def _write_whole(self, text: bytes) -> None:
        while text:
            try:
                text = text[os.write(self._descriptor, text) :]
            except BlockingIOError:  # another program has made the terminal or pipe non-blocking
                time.sleep(_RETRY_SECONDS)
