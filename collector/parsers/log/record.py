"""A record of a log, and the text of the lines that records are made of."""

import codecs
import re
from dataclasses import dataclass
from enum import Enum

LEVELS = ("debug", "info", "warn", "error", "critical")
"""From the least to the most important."""

MAX_LINE_BYTES = 64 * 1024
"""Of a longer line only this much is stored, followed by `CUT_MARK`; a longer record is divided."""

CUT_MARK = f" [cut: the line is longer than {MAX_LINE_BYTES} bytes]"


class Kind(Enum):
    """What a line looks like, which decides whether it may continue the record before it."""

    OPEN = "begins a record of llama-server, whose text may go on in the next lines"
    WHOLE = "is a whole record of a program that prints one line for each"
    ALARM = "what a process prints when it dies, or a device when it fails"
    COMPONENT = "begins with the name of a component, without level and time"
    TEXT = "anything else"


@dataclass(slots=True)
class Record:
    """One record of a log.

    Args:
        level: one of `LEVELS`; None where the line contains none.
        message: without colours, prefix and trailing space; its lines are separated by newlines.
        stamp: seconds since the start of the process that wrote it; None where it has none.
        port: of the router's child that wrote it; 0 for the process that owns the log.
        kind: of its first line.
        line: index of its first line among those that were parsed.
        time: Unix seconds that the line itself contains; None where it contains none.
        writer: name of the program that wrote it, where the line names another one than the server.
    """

    level: str | None
    message: str
    stamp: float | None
    port: int
    kind: Kind
    line: int = 0
    time: float | None = None
    writer: str | None = None


def split_lines(data: bytes) -> list[str]:
    """Return whole lines of a log as text.

    Colours and control characters other than tabs are removed, invalid UTF-8 becomes U+FFFD, an overlong line
    is cut and marked. Lines in UTF-16, as PowerShell writes them (`llama-server > llama.log`), are converted.

    Args:
        data: lines, each with a newline at its end.
    """
    if b"\0" in data:
        data = b"\n".join(map(_from_utf16, data.split(b"\n")))
    start = 0
    while len(data) - start > MAX_LINE_BYTES:  # one search for each 64 KiB: nearly always nothing is cut
        end = data.rfind(b"\n", start, start + MAX_LINE_BYTES + 1)
        if end < 0:
            # Decoding and encoding removes the part of a character that a cut may leave.
            data = b"\n".join(
                line
                if len(line) <= MAX_LINE_BYTES
                else line[:MAX_LINE_BYTES].decode("utf-8", "ignore").encode() + CUT_MARK.encode()
                for line in data.split(b"\n")
            )
            break
        start = end + 1
    if b"\x1b" in data:
        data = _COLOUR.sub(b"", data)
    return data.translate(None, _CONTROL).decode("utf-8", "replace").split("\n")[:-1]


def clean_text(text: str) -> str:
    """Return text from a JSON string as `split_lines` returns it: JSON can escape what no line contains."""
    return "\n".join(split_lines(text.encode("utf-8", "replace") + b"\n")).rstrip()


def _from_utf16(line: bytes) -> bytes:
    """Return a line in UTF-8 that may be in little-endian UTF-16.

    It was cut at the byte of the newline, whose second byte, a NUL, is at the beginning of the next line.
    """
    text = line.lstrip(b"\0").removeprefix(codecs.BOM_UTF16_LE)
    if text[1::2].count(0) <= len(text) * _UTF16_NULS:
        return line
    return text.decode("utf-16-le", "replace").encode("utf-8", "replace")


_UTF16_NULS = 0.2
"""Share of NULs in second places from which a line counts as UTF-16: its stamp and component are ASCII."""

_COLOUR = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]")
_CONTROL = bytes({*range(32), 127} - {ord("\t"), ord("\n")})
