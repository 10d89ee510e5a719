"""The formats of a log line: of llama-server in all its builds, of its forks, and of programs beside it.

To add a format, add an entry to `FORMATS`, and its recording.
"""

import json
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from collector.parsers.log.alarms import death_level, has_component, is_known_component, word_level
from collector.parsers.log.record import LEVELS, Kind, Record, clean_text
from collector.parsers.log.wrappers import iso_time, peel


@dataclass(frozen=True, slots=True)
class Format:
    """One form of a line.

    Args:
        name: what prints it.
        recording: a log in `tests/recordings/trouble/` with such lines.
        parse: returns the record of a line, with the port of the child that wrote it; None for another form.
    """

    name: str
    recording: str
    parse: Callable[[str, int], Record | None]


def parse_line(text: str) -> Record:
    """Return one line as a record of its own, without masking keys."""
    return parse_peeled(peel(text).text)


def parse_peeled(text: str) -> Record:
    """Return one line, whose wrappers were peeled, as a record of its own."""
    port = 0
    if text[:1] == "[" and (match := _PORT(text)):
        port, text = int(match[1]), text[match.end() :]
    if _MAY_HAVE_FORMAT(text):
        for form in FORMATS:
            if record := form.parse(text, port):
                return record
    return _parse_plain(text, port)


# One fast match that excludes nearly all plain lines: they begin with a small letter.
_MAY_HAVE_FORMAT = re.compile(r"\d|[\[{ \t-]|[A-Z]|time=|[\w.]{1,60} - [A-Z]").match


_PORT = re.compile(r"\[ *(\d{1,5})\] ?").match


def level_named(name: object) -> str | None:
    """Return the level of `LEVELS` that a name or abbreviation means; None if it means none."""
    return _LEVEL_NAMES.get(str(name).strip().lower()) if name is not None else None


_LEVEL_NAMES = {level: level for level in LEVELS} | {
    "i": "info", "w": "warn", "e": "error", "d": "debug", "f": "critical", "t": "debug",
    "inf": "info", "information": "info", "notice": "info", "warning": "warn", "wrn": "warn", "err": "error",
    "dbg": "debug", "trc": "debug", "trace": "debug", "verb": "debug", "verbose": "debug",
    "fatal": "critical",
    "10": "debug", "20": "debug", "30": "info", "40": "warn", "50": "error", "60": "critical",  # pino, Msty
    "crit": "critical", "panic": "critical", "alert": "critical", "emerg": "critical", "dpanic": "critical",
    "ftl": "critical", "pnc": "critical",
}  # fmt: skip


def _parse_prefixed(text: str, port: int) -> Record | None:
    """Builds from May 2026: `MINUTES.SS.mmm.uuu L message`; no letter with `--no-log-prefix`."""
    match = _PREFIX(text)
    if match is None:
        return None
    minutes, seconds, letter = match.groups()
    stamp = int(minutes) * 60 + float(seconds)
    return Record(LETTERS.get(letter), text[match.end() :].rstrip(), stamp, port, Kind.OPEN)


PREFIX_PATTERN = r"(\d{1,9})\.(\d\d\.\d{3})\.\d{3} ([IWED])(?: |$)"
_PREFIX = re.compile(r"(\d{1,9})\.(\d\d\.\d{3})\.\d{3}(?: |$)(?:([IWED])(?: |$))?").match
LETTERS = {"I": "info", "W": "warn", "E": "error", "D": "debug"}


def _parse_letter(text: str, port: int) -> Record | None:
    """`--log-prefix` with `--no-log-timestamps`: `L component: message`."""
    match = _LETTER(text)
    return match and Record(LETTERS[match[1]], text[match.end() :].rstrip(), None, port, Kind.OPEN)


_LETTER = re.compile(
    r"([IWED]) +(?=(?:srv|slot|que|res|cmn|main|init|load|print_info|build|system_info)\b[^:]{0,60}: "
    r"|[a-z~]\w*(?:_|::)[\w:~<>]{0,60}(?:\(\))?: )"
).match


def parse_jsonl(text: str, port: int) -> Record | None:
    """`--log-jsonl`; objects of other types than `log` become messages as they are."""
    if not text.startswith('{"type":'):
        return None
    value = _object(text)
    return None if value is None else _record_of(value, text, port)


def parse_jsonl_lines(lines: Sequence[str]) -> list[Record] | None:
    """Return the records of lines that are all of `--log-jsonl`; None if one of them is not.

    One call of the decoder for all of them takes half the time of one for each. What separates the lines can
    be in none of them: otherwise two of them could be one object, and another one two.
    """
    if not all(line.startswith('{"type":') for line in lines):
        return None
    try:
        values = json.loads(f"[{_SEPARATOR.join(lines)}]")
    except (ValueError, RecursionError):
        return None
    objects = values[::2]
    if values[1::2] != [_BETWEEN] * (len(lines) - 1) or not all(type(value) is dict for value in objects):
        return None
    return [_record_of(value, line, 0) for value, line in zip(objects, lines, strict=True)]


_BETWEEN = secrets.token_hex(8)
_SEPARATOR = f',"{_BETWEEN}",'


def _record_of(value: dict[str, Any], text: str, port: int) -> Record:
    """Return the record of an object of `--log-jsonl`.

    Args:
        value: the object.
        text: the line that it was parsed from.
        port: of the child that wrote it.
    """
    if value.get("type") != "log" or not isinstance(message := value.get("msg"), str):
        return Record(None, text.rstrip(), None, port, Kind.OPEN)
    if message[:1] == "[" and not port and _PORT(message):
        # A line of a child, inside the object of its router.
        return parse_line(clean_text(message).replace("\n", " ") or " ")
    if not (stripped := message.rstrip()).isprintable():
        stripped = clean_text(message)
    microseconds = value.get("time")
    stamp = microseconds / 1e6 if isinstance(microseconds, int) and abs(microseconds) < _MAX_STAMP else None
    level = value.get("level")
    return Record(level if level in LEVELS else None, stripped, stamp, port, Kind.OPEN)


_MAX_STAMP = 10**16
_decode = json.JSONDecoder().raw_decode  # twice as fast as `json.loads`


def _object(text: str) -> dict[str, Any] | None:
    """Return the JSON object that a whole line consists of."""
    try:
        value, end = _decode(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and (end == len(text) or text[end:].isspace()) else None


def _parse_old_json(text: str, port: int) -> Record | None:
    """Builds up to 2024, llamafile and Go's loggers: an object with `level`, a text, and a time."""
    if text[:2] != '{"':
        return None
    value = _object(text)
    if value is None or (level := level_named(value.get("level", value.get("severity")))) is None:
        return None
    key = next((key for key in ("msg", "message", "event") if isinstance(value.get(key), str)), None)
    if key is None:
        return None
    rest = {name: part for name, part in value.items() if name not in (*_JSON_HEAD, key)}
    message = " ".join(
        [clean_text(value[key]).strip(), *(f"{name}={_scalar(part)}" for name, part in rest.items())]
    )
    time = next((value[name] for name in ("timestamp", "ts", "time") if name in value), None)
    return Record(level, clean_text(message), None, port, Kind.WHOLE, time=_unix_time(time))


_JSON_HEAD = ("level", "severity", "timestamp", "ts", "time", "tid", "function", "line")


def _scalar(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _unix_time(value: object) -> float | None:
    """Return a time in an object: seconds, milliseconds, or text."""
    if isinstance(value, str):
        return iso_time(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _MAX_MILLISECONDS:
        return None
    return value / 1000 if value > _MAX_SECONDS else float(value)


_MAX_SECONDS, _MAX_MILLISECONDS = 10**11, 10**14


def _parse_ik(text: str, port: int) -> Record | None:
    """ik_llama.cpp, and llama.cpp in 2024: `LEVEL [ function] message | tid="…" timestamp=UNIX key=value`."""
    match = _IK(text)
    if match is None:
        return None
    level, message, values = match.groups()
    time = _IK_TIME(values)
    rest = _IK_HEAD.sub("", values).strip()
    message = f"{message.strip()} {rest}".strip()
    return Record(
        level_named(level), message, None, port, Kind.OPEN, time=_unix_time(int(time[1])) if time else None
    )


_IK = re.compile(
    r" {0,4}(INFO|WARN|WARNING|ERR|ERROR|VERB|DEBUG|FATAL) \[ *[^\]]{1,100}\] (.*?) \| (tid=.*)$"
).match
_IK_TIME = re.compile(r".*?\btimestamp=(\d{9,14})\b").match
_IK_HEAD = re.compile(r"\btid=\"?[^\s\"]*\"? ?|\btimestamp=\d+ ?")


def _parse_bracket(text: str, port: int) -> Record | None:
    """llama-swap, LM Studio, KoboldCpp and others: `[LEVEL] message`."""
    match = _BRACKET(text)
    if match is None:
        return None
    message = text[match.end() :].rstrip() or text.rstrip()
    # llama-swap tells at the level DEBUG how a server died.
    level = "critical" if _DIED(message) else level_named(match[1])
    return Record(level, message, None, port, Kind.WHOLE)


_DIED = re.compile(
    r".{0,300}\bsignal: (?:aborted|segmentation fault|bus error|illegal instruction)(?: \(core dumped\))?$"
).match


_BRACKET = re.compile(
    r"\[(TRACE|DEBUG|DBG|INFO|NOTICE|WARN|WARNING|WRN|ERR|ERROR|CRIT|CRITICAL|FATAL)\](?:\[[^\]]{1,60}\])? ?",
    re.IGNORECASE,
).match


def _parse_level_word(text: str, port: int) -> Record | None:
    """Loggers of Python and Go: `LEVEL message`, `name - LEVEL - message`, `10:00AM ERR message`."""
    match = _LEVEL_WORD(text)
    return match and Record(
        level_named(match[1] or match[2]), text[match.end() :].rstrip(), None, port, Kind.WHOLE
    )


_LEVEL_WORD = re.compile(
    r"(?:- )?(?:[\w.]{1,60} - )?(DEBUG|INFO|WARNING|ERROR|CRITICAL|FATAL) ?(?:[-:|]|  ) *(?=\S)"
    r"|\d{1,2}:\d\d(?::\d\d)?[AP]M (TRC|DBG|INF|WRN|ERR|FTL|PNC) "
).match


def _parse_slog(text: str, port: int) -> Record | None:
    """Ollama and other programs in Go: `time=TIME level=LEVEL source=FILE:LINE msg="TEXT" key=value`."""
    match = _SLOG(text)
    if match is None:
        return None
    time, level, rest = match.groups()
    return Record(level_named(level), _slog_text(rest), None, port, Kind.WHOLE, time=iso_time(time))


_SLOG = re.compile(r'time="?([^"\s]{10,40})"? level="?([A-Za-z]{3,8})(?:[+-]\d+)?"? (.*\S)').match
_SLOG_MESSAGE = re.compile(r'^(?:source=\S+ )?msg=(?:"((?:[^"\\]|\\.)*)"|(\S+)) ?(.*)$').match


def _slog_text(rest: str) -> str:
    match = _SLOG_MESSAGE(rest)
    if match is None:
        return rest
    quoted, word, values = match.groups()
    message = quoted.replace('\\"', '"').replace("\\n", " ") if quoted is not None else word
    return f"{message} {values}".strip() or rest


def _parse_go(text: str, port: int) -> Record | None:
    """Go's log package, as Ollama used it until 2024: `DATE TIME FILE.go:LINE: [LEVEL] message`."""
    match = _GO(text)
    if match is None:
        return None
    date, clock, level = match.groups()
    message = text[match.end() :].rstrip()
    named = level_named(level) or ("error" if _GO_ERROR(message) else None)
    return Record(named, message, None, port, Kind.WHOLE, time=iso_time(f"{date.replace('/', '-')} {clock}"))


_GO = re.compile(
    r"(\d{4}/\d\d/\d\d) (\d\d:\d\d:\d\d)(?:\.\d+)? [\w.-]{1,80}\.go:\d+: (?:(DEBUG|INFO|WARN|ERROR|FATAL) )?"
).match
_GO_ERROR = re.compile(r"(?:error|failed|fatal|cannot|unable)\b", re.IGNORECASE).match


def _parse_gin(text: str, port: int) -> Record | None:
    """Ollama's and LocalAI's access lines: `[GIN] DATE - TIME | STATUS | …`; a status of 500 is an error."""
    match = _GIN(text)
    if match is None:
        return None
    date, clock, status = match.groups()
    level = "error" if status >= "500" else "warn" if status >= "400" else "info"
    return Record(
        level, text.rstrip(), None, port, Kind.WHOLE, time=iso_time(f"{date.replace('/', '-')} {clock}")
    )


_GIN = re.compile(r"\[GIN(?:-debug)?\] (\d{4}/\d\d/\d\d) - (\d\d:\d\d:\d\d) \|\s*(\d{3}) \|").match


def _parse_plain(text: str, port: int) -> Record:
    """What older builds, libraries and dying processes print: no stamp, and a level only by its words."""
    message = text.rstrip()
    if is_known_component(message):  # nearly all lines
        return Record(word_level(message), message, None, port, Kind.COMPONENT)
    if level := death_level(message):
        return Record(level, message, None, port, Kind.ALARM)
    if has_component(message):
        return Record(word_level(message), message, None, port, Kind.COMPONENT)
    return Record(None, message, None, port, Kind.TEXT)


FORMATS: tuple[Format, ...] = (
    Format("llama-server", "24-windows-crlf.log", _parse_prefixed),
    Format("llama-server --log-jsonl", "log-jsonl.log", parse_jsonl),
    Format("llama-server --no-log-timestamps", "16-prefix-without-timestamps.log", _parse_letter),
    Format("llama-server of 2023 and 2024, llamafile", "02-old-json-format.log", _parse_old_json),
    Format("ik_llama.cpp", "01-ik-text-format.log", _parse_ik),
    Format("llama-swap, LM Studio", "12-llama-swap.log", _parse_bracket),
    Format("Ollama", "21-ollama-slog.log", _parse_slog),
    Format("Ollama of 2023 and 2024", "go-log.log", _parse_go),
    Format("Gin", "21-ollama-slog.log", _parse_gin),
    Format("Python's logging", "python-logging.log", _parse_level_word),
)
"""The formats, tried in this order; a line of none of them is plain text."""
