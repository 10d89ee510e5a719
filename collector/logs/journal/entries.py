"""Entries of the journal, and the records that they form. Pure functions: no I/O.

journald makes one entry of each line. A record of several lines (a chat template, a table) is several
entries, and entries of other processes may come between them.
"""

import json
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

from collector.errors import ParseError
from collector.logs.journal.journalctl import CUT
from collector.logs.journal.units import Unit
from collector.logs.reader import LLAMA_SERVER
from collector.parsers.log.keys import ends_with_key_flag
from collector.parsers.log.lines import parse_records
from collector.parsers.log.record import CUT_MARK, MAX_LINE_BYTES, Record, split_lines

_LEVEL_OF_PRIORITY = dict(
    zip("01234567", ["critical"] * 3 + ["error", "warn", "info", "info", "debug"], strict=True)
)


class Writer(NamedTuple):
    """Who wrote an entry.

    Args:
        process: its process id, as text.
        name: llama-server, or the program that writes about the unit (systemd); becomes `logs.source`.
    """

    process: str
    name: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the journal.

    Args:
        cursor: identifies it in the journal.
        microseconds: Unix time of its arrival.
        line: the message as text.
        level: by its priority.
        writer: who wrote it.
    """

    cursor: str
    microseconds: int
    line: str
    level: str
    writer: Writer


@dataclass(frozen=True, slots=True)
class EntryRecords:
    """Records of consecutive entries of one writer.

    Args:
        writer_name: `Writer.name`.
        records: in their order.
        times: Unix seconds of each.
        moments: the same, exact.
    """

    writer_name: str
    records: list[Record]
    times: list[int]
    moments: list[float]


@dataclass(frozen=True, slots=True)
class ParsedEntries:
    """What entries contain.

    Args:
        groups: records, in their order.
        complete: the entries that these records consist of, and entries without text.
        incomplete: entries after them, whose record may continue in the next entry.
        key_process: process whose next line is an API key; None if there is none.
    """

    groups: list[EntryRecords] = field(default_factory=list)
    complete: list[Entry] = field(default_factory=list)
    incomplete: list[Entry] = field(default_factory=list)
    key_process: str | None = None


def read_entry(line: bytes) -> dict[str, Any]:
    """Return the fields of an entry.

    Args:
        line: JSON of journalctl, perhaps with `CUT` in it. Then the fields are those that are whole, and of
            the message only the beginning.

    Raises:
        ParseError: it is not JSON of journalctl.
    """
    if CUT not in line:
        try:
            return dict(json.loads(line))
        except ValueError as error:
            raise ParseError(f"journalctl wrote a line that is no JSON: {line[:80]!r}") from error
    begin, _, end = line.partition(CUT)
    # In JSON every quote inside a text follows a backslash: what looks like a field here is one.
    fields = {
        name.decode(): value.decode()
        for part in (begin.partition(b'"MESSAGE"')[0], end)
        for name, value in _FIELD.findall(part)
    }
    if "__CURSOR" not in fields or "__REALTIME_TIMESTAMP" not in fields:
        raise ParseError(f"journalctl wrote an entry without a position: {line[:80]!r}")
    return {**fields, "MESSAGE": _beginning_of_message(begin) + CUT_MARK}


_FIELD = re.compile(rb'(?<!\\)"(\w+)"\s*:\s*"([^"\\]*)"')


def _beginning_of_message(begin: bytes) -> str:
    """Return the first `MAX_LINE_BYTES` of the message of an overlong entry; empty if it is not in there."""
    raw = begin.partition(b'"MESSAGE"')[2].lstrip(b" :")
    if raw.startswith(b"["):  # bytes, as numbers
        numbers = re.findall(rb"\d+", raw[: 5 * MAX_LINE_BYTES])
        return bytes(int(number) % 256 for number in numbers[:-1]).decode("utf-8", "replace")
    text = raw[1:MAX_LINE_BYTES].decode("utf-8", "ignore")
    for cut in range(_LONGEST_ESCAPE):  # the text may end within an escape sequence
        with suppress(ValueError):
            return str(json.loads(f'"{text[: len(text) - cut]}"'))
    return ""


_LONGEST_ESCAPE = len(r"\ud83d\ude00")


def parse_entry(value: Mapping[str, Any], units: Collection[Unit]) -> Entry:
    """Return the entry with these fields.

    Args:
        value: the fields.
        units: an entry that none of these wrote, such as one of systemd, is about one of them.
    """
    is_own = any(unit.wrote(value) for unit in units)
    name = LLAMA_SERVER if is_own else str(value.get("SYSLOG_IDENTIFIER") or "systemd")
    return Entry(
        value["__CURSOR"],
        int(value["__REALTIME_TIMESTAMP"]),
        "\n".join(split_lines(_bytes_of(value.get("MESSAGE")) + b"\n")),
        _LEVEL_OF_PRIORITY.get(str(value.get("PRIORITY")), "info"),
        Writer(str(value.get("_PID")), name),
    )


def parse_entries(
    entries: list[Entry], key_process: str | None, *, newest_may_continue: bool, must_advance: bool
) -> ParsedEntries:
    """Return the records of entries.

    Args:
        entries: in their order, at least one.
        key_process: process whose next line is an API key: its last line ended with the flag.
        newest_may_continue: whether the last record is left to the next call, which may have more of its
            lines.
        must_advance: whether the last record is returned nevertheless if it is the only one. Example: a
            record of 5000 lines is longer than all entries that are stored at once.
    """
    groups = [list(group) for _, group in groupby(entries, key=_group_key)]
    result: list[EntryRecords] = []
    incomplete: list[Entry] = []
    for group in groups:
        writer = group[0].writer
        records = parse_records([entry.line for entry in group], key_follows=key_process == writer.process)
        if newest_may_continue and records and group is groups[-1]:
            is_only_record = len(groups) == len(records) == 1
            if is_only_record and not must_advance:
                return ParsedEntries(incomplete=entries, key_process=key_process)
            if not is_only_record:
                incomplete = group[records.pop().line :]
        for record in records:
            record.level = record.level or group[record.line].level
        if records and ends_with_key_flag(records[-1].message):
            key_process = writer.process
        elif records and key_process == writer.process:
            key_process = None
        moments = [group[record.line].microseconds / 1e6 for record in records]
        result.append(EntryRecords(writer.name, records, [int(moment) for moment in moments], moments))
    complete = entries[: len(entries) - len(incomplete)]
    return ParsedEntries(result, complete, incomplete, key_process)


def _group_key(entry: Entry) -> object:
    """Return what consecutive entries have in common that may form one record.

    Programs that write about a unit, such as systemd, write whole messages.
    """
    return entry.writer if entry.writer.name == LLAMA_SERVER else entry.cursor


def _bytes_of(message: object) -> bytes:
    """Return the bytes of a message.

    journalctl writes it as text; as an array of byte values if it is not printable; as an array of these if
    the entry has the field several times.
    """
    if isinstance(message, str):
        return message.encode("utf-8", "replace")
    if not isinstance(message, list):
        return b""
    if all(isinstance(value, int) for value in message):
        return bytes(message)
    return b"\n".join(map(_bytes_of, message))
