"""The next part of a log file that is stored, and how much of the bytes read is complete.

Pure functions: no I/O.
"""

from dataclasses import dataclass
from typing import NamedTuple

from collector.parsers.log.lines import parse_records
from collector.parsers.log.record import Record, split_lines

_MAX_CHARACTER_BYTES = 4
_FIRST_NON_ASCII = 0x80
_FIRST_LEADING_BYTE = 0xC0


@dataclass(frozen=True, slots=True)
class Chunk:
    """Records that were read from a file, and the bytes that the position moves over with them.

    Args:
        records: in their order; none where the bytes are skipped.
        times: Unix seconds of each record, as `logs` has them.
        moments: exact Unix seconds of each record, for requests.
        data: the bytes from the position on, at least those that an `Anchor` needs.
        size_bytes: how far the position moves.
        modified_ns: time of the file's last change when it was read.
        skipping: see `FilePosition`.
        incomplete: bytes after the chunk that were read and must be read again.
    """

    records: list[Record]
    times: list[int]
    moments: list[float]
    data: bytes
    size_bytes: int
    modified_ns: int
    skipping: bool = False
    incomplete: bytes = b""


class CompletePart(NamedTuple):
    """The complete records at the beginning of some bytes.

    Args:
        records: in their order.
        size_bytes: size of their lines, with empty lines and the newlines.
        incomplete: bytes after them that must be read again, up to the end of the file; empty where the
            end of the file was not reached.
    """

    records: list[Record]
    size_bytes: int
    incomplete: bytes


def complete_records(
    data: bytes, max_lines: int, *, key_follows: bool, at_end: bool, is_settled: bool
) -> CompletePart:
    """Return the complete records at the beginning of some bytes.

    What follows the last newline is an unfinished line. The last record may be incomplete as well, because
    a record consists of several lines: llama-server prints a chat template with one call for each line, and
    the bytes may end between two of them.

    Args:
        data: bytes from the beginning of a line; at least one newline is among them.
        max_lines: how many lines are used, at least 1.
        key_follows: see `parse_records`.
        at_end: whether the bytes reach to the end of the file.
        is_settled: whether the file has not grown for a while, so that its last record is complete.
    """
    lines = split_lines(data[: data.rfind(b"\n") + 1])
    if len(lines) > max_lines:
        lines, at_end = lines[:max_lines], False
    records = parse_records(lines, key_follows=key_follows)
    line_count = len(lines)
    if records and not (at_end and is_settled):
        # The last record may continue after these lines: leave it to the next call. An exception is a record
        # that is longer than what is read at once: it is divided, since waiting would not make it shorter.
        first_line = records[-1].line
        if first_line > 0 or at_end:
            records, line_count = records[:-1], first_line
    size_bytes = len(data) - len(data.split(b"\n", line_count)[line_count])
    return CompletePart(records, size_bytes, data[size_bytes:] if at_end else b"")


def size_of_whole_characters(data: bytes) -> int:
    """Return the number of bytes up to the end of the last whole UTF-8 character.

    An unfinished line may end inside a character. Example: of `caf` and the first of the two bytes of
    `é`, 3 bytes are whole characters. If nothing precedes that character, all bytes count: something must
    be stored.
    """
    for back in range(1, min(_MAX_CHARACTER_BYTES, len(data)) + 1):
        byte = data[-back]
        if byte < _FIRST_NON_ASCII:
            break
        if byte >= _FIRST_LEADING_BYTE:
            length = 2 + (byte >= 0xE0) + (byte >= 0xF0)  # noqa: PLR2004 - characters of 3 and of 4 bytes
            return len(data) - back if back < length and back < len(data) else len(data)
    return len(data)
