"""What other programs put before each line of a server: its peeling, and the time that it contains.

A line may be wrapped more than once. To add a wrapper, add an entry to `WRAPPERS`, and its recording.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from collector.parsers.log.record import split_lines


@dataclass(frozen=True, slots=True)
class Peeled:
    """A line without what was put before it.

    Args:
        text: the line of the server.
        time: Unix seconds; None where the wrapper contains none.
        writer: program that wrote it, where the wrapper names another one than the server.
        is_partial: whether the text goes on in the next line, without a newline between the two.
    """

    text: str
    time: float | None = None
    writer: str | None = None
    is_partial: bool = False


@dataclass(frozen=True, slots=True)
class Wrapper:
    """One form in which another program passes lines on.

    Args:
        name: who does so.
        recording: a log in `tests/recordings/trouble/` with such lines.
        peel: returns the line without it; None for any other line.
    """

    name: str
    recording: str
    peel: Callable[[str], Peeled | None]


_ISO = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z| ?[+-]\d\d:?\d\d)?"
_SERVERS = ("llama-server", "llama", "llama-swap", "ollama", "llamafile", "server")

_CRI = re.compile(rf"({_ISO}) std(?:out|err) ([FP])(?::\S+)? ?").match
_COMPOSE = re.compile(r"([\w][\w.-]{0,100})\s+\| ?").match
_NUMBERED = re.compile(r".+[-_]\d+").fullmatch
_SYSLOG = re.compile(
    r"([A-Z][a-z]{2}) ([ \d]\d) (\d\d):(\d\d):(\d\d)(?:\.\d+)? (\S{1,255}) ([\w./@-]{1,100})(?:\[\d+\])?: "
).match
_SHORT_ISO = re.compile(rf"({_ISO}) (\S{{1,255}}) ([\w./@-]{{1,100}})(?:\[\d+\])?: ").match
_LEADING_TIME = re.compile(rf"(?:\[({_ISO})\]|({_ISO}):?)[ |]*").match
_TAI64N = re.compile(r"@([0-9a-f]{16})([0-9a-f]{8}) ").match
_TAI64_EPOCH, _TAI_OFFSET_SECONDS = 2**62, 10
_BRACKETED = re.compile(r"(?:[\w.-]{1,60} )?\[([A-Za-z][\w.:/@-]{0,100})\]:? (?=\s*\S)").match
_NAME_OF_LEVEL = re.compile(
    r"(?:TRACE|DEBUG|INFO|WARN(?:ING)?|ERR(?:OR)?|CRIT(?:ICAL)?|FATAL|GIN|New|Thread)", re.IGNORECASE
).match
_STRUCTURED = re.compile(
    r"\d+\.\d\d\.\d{3}\.\d{3} |\{\"|[IWED] \w|\[ *\d{1,5}\] \d+\.|(?:srv|slot|que|res) |\w+: "
).match
_KERNEL_TIME = re.compile(r"\[ *\d+\.\d{6}\] ").match


def _peel_cri(text: str) -> Peeled | None:
    """Kubernetes: `TIME stdout F TEXT`, or `P` where the text goes on in the next line."""
    match = _CRI(text)
    return match and Peeled(text[match.end() :], iso_time(match[1]), is_partial=match[2] == "P")


def _peel_docker_json(text: str) -> Peeled | None:
    r"""Docker's file: `{"log":"TEXT\n","stream":"stderr","time":"TIME"}`; no newline: it goes on."""
    if not text.startswith('{"log":'):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    line = value.get("log") if isinstance(value, dict) else None
    if not isinstance(line, str):
        return None
    time = value.get("time")
    return Peeled(
        "\n".join(split_lines(line.rstrip("\n").encode("utf-8", "replace") + b"\n")),
        iso_time(time) if isinstance(time, str) else None,
        is_partial=not line.endswith("\n"),
    )


def _peel_compose(text: str) -> Peeled | None:
    """`docker compose logs`: `name-1  | TEXT`; without a number only before a line of a known form."""
    match = _COMPOSE(text)
    if match is None or not (_NUMBERED(match[1]) or _STRUCTURED(text, match.end())):
        return None
    return Peeled(text[match.end() :])


def _peel_syslog(text: str) -> Peeled | None:
    """Syslog and `journalctl`: `Nov 26 10:00:00 host program[123]: TEXT`, in local time."""
    match = _SYSLOG(text)
    if match is None:
        return None
    month, day, hour, minute, second, _, program = match.groups()
    now = datetime.now()  # noqa: DTZ005 - such a time is local, and has no year
    time = None
    for year in (now.year, now.year - 1):
        try:
            written = datetime.strptime(f"{year} {month} {day.strip()}", "%Y %b %d")  # noqa: DTZ007
            written = written.replace(hour=int(hour), minute=int(minute), second=int(second))
        except ValueError:
            continue
        if written <= now + timedelta(days=1):
            time = written.timestamp()
            break
    return _of_program(text[match.end() :], time, program)


def _peel_short_iso(text: str) -> Peeled | None:
    """`journalctl -o short-iso` and rsyslog: `2026-11-26T10:00:00+0100 host program[123]: TEXT`."""
    match = _SHORT_ISO(text)
    return match and _of_program(text[match.end() :], iso_time(match[1]), match[3])


def _of_program(text: str, time: float | None, program: str) -> Peeled:
    if program == "kernel" and (stamp := _KERNEL_TIME(text)):
        text = text[stamp.end() :]
    return Peeled(text, time, None if program.startswith(_SERVERS) else program)


def _peel_tai64n(text: str) -> Peeled | None:
    """multilog, s6-log and svlogd: `@4000000067e4…` and the text. TAI was 10 s ahead of UTC in 1970."""
    match = _TAI64N(text)
    if match is None:
        return None
    seconds = int(match[1], 16) - _TAI64_EPOCH - _TAI_OFFSET_SECONDS
    return Peeled(text[match.end() :], seconds + int(match[2], 16) / 1e9)


def _peel_time(text: str) -> Peeled | None:
    """`ts`, `docker logs -t`, pm2, svlogd: a time in ISO form and the text."""
    match = _LEADING_TIME(text)
    return match and Peeled(text[match.end() :], iso_time(match[1] or match[2]))


def _peel_name(text: str) -> Peeled | None:
    """A process manager: `[name] TEXT` or `program [name:8080]: TEXT`, before a line of a known form."""
    match = _BRACKETED(text)
    if match is None or _NAME_OF_LEVEL(match[1]):
        return None
    is_program = text[0] != "["
    return Peeled(text[match.end() :]) if is_program or _STRUCTURED(text, match.end()) else None


WRAPPERS: tuple[Wrapper, ...] = (
    Wrapper("Kubernetes CRI", "15-kubernetes-cri.log", _peel_cri),
    Wrapper("Docker's json-file", "docker-json-file.log", _peel_docker_json),
    Wrapper("docker compose", "13-compose-prefix.log", _peel_compose),
    Wrapper("syslog", "22-kernel-lines.log", _peel_syslog),
    Wrapper("journalctl -o short-iso", "journalctl-short-iso.log", _peel_short_iso),
    Wrapper("multilog", "multilog-tai64n.log", _peel_tai64n),
    Wrapper("a leading time", "leading-time.log", _peel_time),
    Wrapper("a process manager", "09-wrapper-prefix-terminate.log", _peel_name),
)

_MAX_WRAPPERS = 3

# One fast match that excludes nearly all lines which no wrapper was put before.
may_be_wrapped = re.compile(
    r"\d{4}-\d\d-|\[[A-Za-z\d]|\{\"log\":|@[0-9a-f]{8}|[A-Z][a-z]{2} [ \d]\d |[\w.-]+ +\| |[\w.-]+ \["
).match


def peel(text: str) -> Peeled:
    """Return a line without its wrappers; the outermost time and the innermost writer count."""
    result = Peeled(text)
    if not may_be_wrapped(text):
        return result
    for _ in range(_MAX_WRAPPERS):
        inner = _peel_once(result.text)
        if inner is None:
            break
        time = inner.time if result.time is None else result.time
        result = Peeled(
            inner.text, time, inner.writer or result.writer, inner.is_partial or result.is_partial
        )
    return result


def _peel_once(text: str) -> Peeled | None:
    if not may_be_wrapped(text):
        return None
    for wrapper in WRAPPERS:
        if peeled := wrapper.peel(text):
            return peeled
    return None


def iso_time(text: str) -> float | None:
    """Return Unix seconds of a time in ISO form; one without a zone is local. None if it is not a time."""
    try:
        return datetime.fromisoformat(
            text.replace(",", ".").replace(" +", "+").replace(" -", "-")
        ).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
