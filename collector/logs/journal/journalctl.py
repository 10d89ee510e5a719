"""One run of `journalctl` in a child process.

A library that maps the journal files would be faster, but a truncated journal file kills the process that
has it mapped (SIGBUS). Here only the child dies.
"""

import os
import re
import selectors
import signal
import subprocess
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

from collector.errors import SourceAbsent, SourceFailed

SILENCE_SECONDS = 30.0
"""journalctl is ended when it writes nothing for so long."""

_FIELDS = "MESSAGE,PRIORITY,_PID,_SYSTEMD_UNIT,_SYSTEMD_USER_UNIT,CONTAINER_NAME,SYSLOG_IDENTIFIER"

MAX_ENTRY_BYTES = 512 * 1024
"""Of a longer entry in JSON only the beginning is kept. journald divides lines of more than 48 KiB itself;
only what programs send to it as one field, such as a core dump, is longer."""

_KEPT_END_BYTES = 4096
_READ_BYTES = 64 * 1024
_MAX_ERROR_CHARACTERS = 4096


class Journalctl:
    """A run of journalctl that is ended with the `with` block.

    Args:
        arguments: which entries to read.

    Attributes:
        error_text: what it wrote to its standard error.

    Raises:
        SourceAbsent: there is no journalctl.
    """

    def __init__(self, arguments: Iterable[str]) -> None:
        # --all: without it a field of more than 4096 bytes is null.
        command = ["journalctl", "--output=json", "--all", "--no-pager", f"--output-fields={_FIELDS}"]
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own arguments; no shell
                [*command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=os.environ | {"LC_ALL": "C"},  # its messages are matched
            )
        except FileNotFoundError as error:
            raise SourceAbsent(
                "there is no journalctl here: use [logs] files instead of journal_units"
            ) from error
        self.error_text = ""

    def lines(self) -> Iterator[bytes]:
        """Yield its lines of JSON, as they come; an overlong one as its beginning and end, see `shorten`.

        Both of its pipes are read together: if one were not, it could fill, and journalctl would block.

        Raises:
            SourceFailed: it writes nothing for too long, was killed, or failed without a message.
        """
        assert self._process.stdout
        assert self._process.stderr
        line = _Line()
        with selectors.DefaultSelector() as selector:
            for pipe in (self._process.stdout, self._process.stderr):
                selector.register(pipe, selectors.EVENT_READ)
            while selector.get_map():
                ready = selector.select(SILENCE_SECONDS)
                if not ready:
                    raise SourceFailed(f"journalctl wrote nothing for {SILENCE_SECONDS:.0f} seconds")
                for key, _ in ready:
                    data = os.read(key.fd, _READ_BYTES)
                    if not data:
                        selector.unregister(key.fileobj)
                    elif key.fileobj is self._process.stdout:
                        yield from line.add(data)
                    elif len(self.error_text) < _MAX_ERROR_CHARACTERS:
                        self.error_text += data.decode("utf-8", "replace")
        code = self._process.wait()
        if code < 0:
            raise SourceFailed(
                f"journalctl was ended by {signal.Signals(-code).name}: a journal file may be damaged; "
                "check with journalctl --verify"
            )
        if code and not self.error_text:
            raise SourceFailed(f"journalctl ended with code {code} and without a message")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe
            pipe.close()
        self._process.wait()


class _Line:
    """The line of JSON that journalctl is writing, in bounded memory."""

    def __init__(self) -> None:
        self._begin = bytearray()
        self._end = b""  # of an overlong line, what was read last

    def add(self, data: bytes) -> Iterator[bytes]:
        """Add what was read, and yield the lines that are complete."""
        *endings, rest = data.split(b"\n")
        for ending in endings:
            self._append(ending)
            line = bytes(self._begin) if not self._end else bytes(self._begin) + CUT + self._end
            self._begin, self._end = bytearray(), b""
            if line.startswith(b"{"):
                yield line
        self._append(rest)

    def _append(self, data: bytes) -> None:
        room = MAX_ENTRY_BYTES - len(self._begin)
        self._begin += data[:room]
        if len(data) > room:
            self._end = (self._end + data[room:])[-_KEPT_END_BYTES:]


CUT = b"\0"
"""Stands in an overlong line for what was left out. JSON contains no NUL."""


def is_about_cursor(error_text: str) -> bool:
    """Return whether journalctl reported that it cannot start at the cursor."""
    return "cursor" in error_text.lower()


def raise_error(error_text: str) -> None:
    """Raise an error that says what to change, if journalctl wrote a message.

    Raises:
        SourceAbsent: there is no journal.
        SourceFailed: it cannot be read.
    """
    if _NOT_PERMITTED(error_text):
        raise SourceFailed(
            "the journal may not be read: add the user of the collector to the group systemd-journal "
            "(usermod -aG systemd-journal USER) and restart it"
        )
    if "No journal files were found" in error_text:
        raise SourceAbsent("there is no journal here: use [logs] files instead of journal_units")
    if error_text.strip():
        raise SourceFailed(f"journalctl: {error_text.strip()}")


_NOT_PERMITTED = re.compile(
    "permission denied|insufficient permissions|not seeing messages from other users", re.IGNORECASE
).search
