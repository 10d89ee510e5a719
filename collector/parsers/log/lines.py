"""Parsing of llama-server's output: bytes of a log into records, for every build and all its settings.

The format is detected line by line, because a restart with other flags changes it in the middle of a file.
A line is first freed of what other programs put before it (`wrappers.py`), then parsed by the first
format that recognizes it (`formats.py`). A line that belongs to the record before it (a chat template, a
table) becomes part of that record.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

from collector.parsers.log.alarms import (
    is_known_component,
    is_trace,
    quotes_text,
    raised_level,
    starts_with_failure,
    word_level,
)
from collector.parsers.log.formats import (
    LETTERS,
    PREFIX_PATTERN,
    parse_jsonl_lines,
    parse_peeled,
)
from collector.parsers.log.keys import mask_keys, may_contain_key
from collector.parsers.log.record import MAX_LINE_BYTES, Kind, Record
from collector.parsers.log.wrappers import Peeled, may_be_wrapped, peel


def parse_records(lines: Sequence[str], *, key_follows: bool = False) -> list[Record]:
    """Return the records of consecutive lines, without empty lines and with API keys masked.

    Three ways lead to the same records. Nearly all logs are in one of two formats throughout, and parsing all
    lines of such a log together is faster than parsing them one by one.

    Args:
        lines: as `split_lines` returns them.
        key_follows: whether the next line is a key, because the line before ended with the flag of one.
    """
    text = "\n".join(lines)  # one search in all of them costs least
    prefixed = _ALL_PREFIXED(text)
    if len(prefixed) == len(lines):  # all lines are in the default format of today's builds
        records = [
            # Positional arguments, only here: keywords cost a tenth of the whole line.
            Record(LETTERS[letter], stripped, int(minutes) * 60 + float(seconds), 0, Kind.OPEN, number)
            for number, (minutes, seconds, letter, message) in enumerate(prefixed)
            if (stripped := message.rstrip())
        ]
    else:
        records = _parse_jsonl(lines) or _parse_any_format(lines)
        text = "\n".join(record.message for record in records)  # in JSON a key may be written with escapes
    if " exited with status " in text:
        raise_levels(records)
    if key_follows or may_contain_key(text):
        mask_keys(records, key_follows=key_follows)
    return records


def raise_levels(records: Iterable[Record]) -> None:
    """Set the level of records whose own level is too low."""
    for record in records:
        record.level = raised_level(record.message) or record.level


_ALL_PREFIXED = re.compile(rf"^{PREFIX_PATTERN}(.*)$", re.MULTILINE).findall


def _parse_jsonl(lines: Sequence[str]) -> list[Record]:
    """Return the records of lines of `--log-jsonl`; an empty list if one of them is something else."""
    parsed = parse_jsonl_lines(lines)
    if parsed is None or any(record.kind is not Kind.OPEN for record in parsed):
        return []  # such a line may belong to the record before it
    for number, record in enumerate(parsed):
        record.line = number
    return [record for record in parsed if record.message]


def _parse_any_format(lines: Sequence[str]) -> list[Record]:
    """Return the records of lines, each of which may be in another format or continue a record."""
    assembly = _Assembly()
    for number, peeled in _peel_lines(lines):
        if isinstance(peeled, str):
            record = parse_peeled(peeled)
        else:
            record = parse_peeled(peeled.text)
            record.time = peeled.time if record.time is None else record.time
            record.writer = peeled.writer
        if record.message:
            record.line = number
            assembly.add(record)
    return assembly.records


def _peel_lines(lines: Sequence[str]) -> Iterator[tuple[int, Peeled | str]]:
    """Yield number and text of each line without its wrappers; lines that a wrapper divided are joined.

    A line without any is yielded as it is: most logs have none.
    """
    number, held = 0, None
    for index, line in enumerate(lines):
        if not line or line.isspace():
            continue
        if held is None and not may_be_wrapped(line):
            yield index, line
            continue
        peeled = peel(line)
        if held and len(held.text) < MAX_LINE_BYTES:
            peeled = Peeled(held.text + peeled.text, held.time, held.writer, peeled.is_partial)
        else:
            if held:
                yield number, held
            number = index
        held = peeled if peeled.is_partial else None
        if held is None and peeled.text and not peeled.text.isspace():
            yield number, peeled
    if held:
        yield number, held


class _Assembly:
    """Builds records of lines: decides which of them continue the record before.

    The difficulty is text that others wrote. llama-server prints prompts, answers and templates as they are,
    line after line, and these may quote every kind of error. Example:

        W common_chat_peg_parse: unparsed peg-native output: <tool_call>
        ggml.c:1: GGML_ASSERT(a) failed

    The second line is no alarm, because the first one announces such text (`quotes_text`), or because a line
    that looks like nothing known came before it. The next line of a known form ends this.
    """

    def __init__(self) -> None:
        self.records: list[Record] = []
        self._quoting: set[int] = set()  # ports of the processes that print text of others at this point
        self._formatted: set[int] = set()  # ports of the processes whose own lines have a format

    def add(self, record: Record) -> None:
        """Add a line as a record of its own, or to the last one."""
        last = self.records[-1] if self.records else None
        if (
            record.kind is Kind.COMPONENT
            and not self._quoting
            and (last is None or last.kind is not Kind.ALARM)
        ):
            # Nearly every line of a log without prefixes: what follows would come to the same.
            if quotes_text(record.message):
                self._quoting.add(record.port)
            self.records.append(record)
            return
        if record.kind is Kind.OPEN:
            self._formatted.add(record.port)
        is_quoted = record.port in self._quoting and not self._ends_quotation(record)
        if (
            last is not None
            and last.port == record.port
            and _continues(record, last, is_quoted=is_quoted)
            and len(last.message) + len(record.message) < MAX_LINE_BYTES
        ):
            last.message += "\n" + record.message
            if record.kind is Kind.TEXT and last.kind is Kind.OPEN and not record.message[0].isspace():
                self._quoting.add(record.port)
            return
        if is_quoted:  # a line of another process has divided it
            record.level = None
        elif record.kind is Kind.TEXT and starts_with_failure(record.message):
            record.level = word_level(record.message)
        if record.kind is not Kind.TEXT and not is_quoted:
            self._quoting.discard(record.port)
            if record.kind is not Kind.ALARM and quotes_text(record.message):
                self._quoting.add(record.port)
        self.records.append(record)

    def _ends_quotation(self, record: Record) -> bool:
        """Return whether a line is certainly not text of others.

        A process whose own lines have a format ends it with the next one of these. For builds without any
        format, a line with one of llama.cpp's components must do.
        """
        if record.kind in (Kind.OPEN, Kind.WHOLE):
            return True
        return record.port not in self._formatted and is_known_component(record.message)


def _continues(record: Record, last: Record, *, is_quoted: bool) -> bool:
    """Return whether a line continues the record before it, which is of the same process."""
    if record.kind in (Kind.OPEN, Kind.WHOLE):
        return False
    if is_quoted:
        return True
    if record.message[0].isspace():
        return True
    if last.kind is Kind.ALARM:  # a trace of calls follows, or what a debugger prints
        is_new = is_known_component(record.message) or starts_with_failure(record.message)
        return is_trace(record.message) if record.kind is Kind.ALARM else not is_new
    # `slot print_timing: id  1 | task 0 |` goes on in the next line too.
    return record.kind is Kind.TEXT and (last.kind is Kind.OPEN or last.message.endswith("|"))


def spawned_child(message: str) -> tuple[int, str] | None:
    """Return port and model of a router's child, if this message of the router contains them."""
    action, separator, port = message.rpartition(" on port ")
    if separator and _PORT_NUMBER(port) and (match := _CHILD(action)):
        return int(port), match[1]
    return None


_CHILD = re.compile(r"srv .*: (?:spawning server instance with name=|proxying request to model )(.+)$").match
_PORT_NUMBER = re.compile(r"\d{1,5}").fullmatch
