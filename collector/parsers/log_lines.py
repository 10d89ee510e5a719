"""Parsing of llama-server's output: bytes of a log into records, for every build and all its settings.

The format is detected line by line, because a restart with other flags changes it in the middle of a file.
A line that belongs to the record before it (a chat template, a table) becomes part of that record.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

LEVELS = ("debug", "info", "warn", "error", "critical")
"""From the least to the most important."""

MAX_LINE_BYTES = 64 * 1024
"""Of a longer line only this much is stored, followed by `CUT_MARK`; a longer record is divided."""

CUT_MARK = f" [cut: the line is longer than {MAX_LINE_BYTES} bytes]"

_MASK = "***"


@dataclass(slots=True)
class Record:
    """One record of a log.

    Args:
        level: one of `LEVELS`; None where the line contains none.
        message: without colours, prefix and trailing space; its lines are separated by newlines.
        stamp: seconds since the start of the process that wrote it; None where it has none.
        port: of the router's child that wrote it; 0 for the process that owns the log.
        begins: whether its first line has a form with which llama-server begins a record.
        line: index of its first line among those that were parsed.
    """

    level: str | None
    message: str
    stamp: float | None
    port: int
    begins: bool
    line: int = 0


def split_lines(data: bytes) -> list[str]:
    """Return whole lines of a log as text.

    Colours and control characters other than tabs are removed, invalid UTF-8 becomes U+FFFD, an overlong line
    is cut and marked.

    Args:
        data: lines, each with a newline at its end.
    """
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


_COLOUR = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]")
_CONTROL = bytes({*range(32), 127} - {ord("\t"), ord("\n")})


def parse_records(lines: Sequence[str], *, key_follows: bool = False) -> list[Record]:
    """Return the records of consecutive lines, without empty lines and with API keys masked.

    A router prints the arguments of a child one on each line, so that a key is on the line after its flag.

    Three ways lead to the same records. Nearly all logs are in one of two formats throughout, and parsing all
    lines of such a log together is faster than parsing them one by one.

    Args:
        lines: as `split_lines` returns them.
        key_follows: whether the line before them ended with such a flag (`ends_with_key_flag`).
    """
    text = "\n".join(lines)  # one search in all of them costs least
    prefixed = _ALL_PREFIXED(text)
    if len(prefixed) == len(lines):  # all lines are in the default format of today's builds
        records = [
            # Positional arguments, only here: keywords cost a tenth of the whole line.
            Record(_LETTERS[letter], stripped, int(minutes) * 60 + float(seconds), 0, True, number)  # noqa: FBT003
            for number, (minutes, seconds, letter, message) in enumerate(prefixed)
            if (stripped := message.rstrip())
        ]
    else:
        records = _parse_jsonl(lines) or _parse_any_format(lines)
        text = "\n".join(record.message for record in records)  # in JSON a key may be written with escapes
    if not key_follows and not _may_contain_key(text):
        return records
    for record in records:
        message = record.message
        if key_follows:
            record.message = _ARGUMENT.sub(rf"\1{_MASK}", message, count=1)
        if _may_contain_key(message):
            record.message = _KEY.sub(rf"\1{_MASK}", record.message)
        key_follows = ends_with_key_flag(message)
    return records


def _parse_jsonl(lines: Sequence[str]) -> list[Record]:
    """Return the records of lines of `--log-jsonl`; an empty list if one of them is something else."""
    records = []
    for number, line in enumerate(lines):
        record = _parse_json(line, 0)
        if record is None or not record.begins:
            return []  # such a line may belong to the record before it
        if record.message:
            record.line = number
            records.append(record)
    return records


def _parse_any_format(lines: Sequence[str]) -> list[Record]:
    """Return the records of lines, each of which may be in another format or continue a record.

    A line of no known form continues the record before it if llama-server has begun that record, or if the
    line is indented. Example: lines of a chat template follow `srv  load: chat template:`. What a library
    prints, line after line, becomes a record for each line.
    """
    records: list[Record] = []
    last: Record | None = None
    for number, text in enumerate(lines):
        if not text or text.isspace():
            continue
        record = parse_line(text)
        if not record.message:
            continue
        if (
            last is not None
            and not record.begins
            and record.port == last.port
            and (last.begins or record.message[0].isspace())
            and len(last.message) + len(record.message) < MAX_LINE_BYTES
        ):
            last.message += "\n" + record.message
            continue
        record.line = number
        records.append(record)
        last = record
    return records


def parse_line(text: str) -> Record:
    """Return one line as a record of its own, without masking keys."""
    port = 0
    if text[0] == "[" and (match := _PORT(text)):
        port, text = int(match[1]), text[match.end() :]
    for parse in FORMATS:
        if record := parse(text, port):
            return record
    raise AssertionError  # the last format accepts every line


_PORT = re.compile(r"\[ *(\d{1,5})\] ?").match


def _parse_prefixed(text: str, port: int) -> Record | None:
    """Parse a line in the default format of today's builds: `MINUTES.SS.mmm.uuu L message`."""
    match = _PREFIX(text)
    if match is None:
        return None
    minutes, seconds, letter = match.groups()
    stamp = int(minutes) * 60 + float(seconds)
    return Record(_LETTERS[letter], text[match.end() :].rstrip(), stamp, port, begins=True)


_PREFIX_PATTERN = r"(\d{1,9})\.(\d\d\.\d{3})\.\d{3} ([IWED]) ?"
_PREFIX = re.compile(_PREFIX_PATTERN).match
_ALL_PREFIXED = re.compile(rf"^{_PREFIX_PATTERN}(.*)$", re.MULTILINE).findall
_LETTERS = {"I": "info", "W": "warn", "E": "error", "D": "debug"}


def _parse_json(text: str, port: int) -> Record | None:
    """Parse a line of `--log-jsonl`; objects of other types than `log` become messages as they are."""
    if not text.startswith('{"type":'):
        return None
    try:
        value, end = _decode(text)
    except (ValueError, RecursionError):
        return None
    if end < len(text) and not text[end:].isspace():
        return None
    if value.get("type") != "log" or not isinstance(message := value.get("msg"), str):
        return Record(None, text.rstrip(), None, port, begins=True)
    if message[:1] == "[" and not port and _PORT(message):
        # A line of a child, inside the object of its router.
        return parse_line(" ".join(split_lines(message.encode("utf-8", "replace") + b"\n")))
    if not (stripped := message.rstrip()).isprintable():
        # JSON can escape what no other format contains: control characters, colours, lone surrogates.
        stripped = "\n".join(split_lines(message.encode("utf-8", "replace") + b"\n")).rstrip()
    microseconds = value.get("time")
    stamp = microseconds / 1e6 if isinstance(microseconds, int) and abs(microseconds) < _MAX_STAMP else None
    level = value.get("level")
    return Record(level if level in LEVELS else None, stripped, stamp, port, True)  # noqa: FBT003


_decode = json.JSONDecoder().raw_decode  # twice as fast as `json.loads`
_MAX_STAMP = 10**16


def _parse_plain(text: str, port: int) -> Record:
    """Parse what older builds and other libraries print: no stamp, and a level only by its words."""
    level = None
    lowered = text[:_LEVEL_CHARACTERS].lower()
    # Most lines contain none of these words. This is the fastest form of the check: `any` over a list takes
    # three times as long, the expression below twenty times.
    if (
        "err" in lowered
        or "fail" in lowered
        or "warn" in lowered
        or "ggml_assert" in lowered
        or "fatal" in lowered
        or lowered.startswith(("terminate", "segmentation", "aborted"))
    ) and (match := _LEVEL_WORDS(lowered)):
        level = match.lastgroup
    return Record(level, text.rstrip(), None, port, begins=level is not None or bool(_COMPONENT(text)))


_COMPONENT = re.compile(r"[~A-Za-z_][\w~.()<> -]{0,48}: ").match
"""`srv  llama_server: …`, `print_info: …`, `~Server: …`."""

_LEVEL_CHARACTERS = 1000
"""Only the beginning of a line is searched for words that show a level."""


_LEVEL_WORDS = re.compile(
    r"(?P<critical>\bggml_assert\b|^terminate called|^segmentation fault|^aborted\b|\bfatal(?: error)?:)"
    r"|(?P<error>\berror(?: loading| while|:)|\bcuda error\b|\bfailed to )"
    r"|(?P<warn>\bwarn(?:ing)?:)"
).search

FORMATS: tuple[Callable[[str, int], Record | None], ...] = (_parse_prefixed, _parse_json, _parse_plain)
"""Parsers of one line, with the port of the child that wrote it; the first that recognizes it is used."""


_KEY_FLAG = r"--(?:api-key|hf-token)|-hft"
_KEY_HINTS = ("-key", "_key", "hf", "sk-", "bearer", "authorization")


def _may_contain_key(text: str) -> bool:
    """Return whether there may be a key: a fast check, because almost no line contains one."""
    lowered = text.lower()
    return any(hint in lowered for hint in _KEY_HINTS)


_ARGUMENT = re.compile(r"\A(srv .*?load:\s+)?.*\Z", re.DOTALL)
_KEY = re.compile(
    rf"((?<![\w-])(?:{_KEY_FLAG})(?:=|\s+)[\"']?"
    r"|\bauthorization[\"']?\s*[:=]\s*[\"']?(?:bearer\s+|basic\s+)?"
    r"|\bbearer\s+"
    r"|api[_-]key[\"']?\s*[:=]\s*[\"']?"
    r"|\bhf_token[\"']?\s*[:=]\s*[\"']?"
    r"|\b(?=sk-[\w-]{6})|\b(?=hf_[a-z0-9]{12}))"
    r"[^\s\"'}]+",
    re.IGNORECASE,
)


def ends_with_key_flag(message: str) -> bool:
    """Return whether the next argument, on the next line, is a key."""
    return message.endswith(_KEY_FLAGS)


_KEY_FLAGS = ("--api-key", "--hf-token", " -hft")


def spawned_child(message: str) -> tuple[int, str] | None:
    """Return port and model of a router's child, if this message of the router contains them."""
    action, separator, port = message.rpartition(" on port ")
    if separator and _PORT_NUMBER(port) and (match := _CHILD(action)):
        return int(port), match[1]
    return None


_CHILD = re.compile(r"srv .*: (?:spawning server instance with name=|proxying request to model )(.+)$").match
_PORT_NUMBER = re.compile(r"\d{1,5}").fullmatch
