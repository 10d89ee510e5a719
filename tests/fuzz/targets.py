"""What is fuzzed: each reader of bytes from outside, the error that it documents, and properties of its result."""

import io
import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

import httpx

from collector.errors import CollectorError, ParseError, SettingsError
from collector.models.header_process import FORMAT
from collector.parsers import gguf_header
from collector.parsers.cron import is_due
from collector.parsers.exposition import MAX_SAMPLES, PREFIX, parse_exposition
from collector.parsers.gguf_header import Header, parse_header
from collector.parsers.log import lines as log_lines
from collector.parsers.log.lines import parse_records, spawned_child
from collector.parsers.log.record import CUT_MARK, LEVELS, MAX_LINE_BYTES, Kind, Record, split_lines
from collector.parsers.log.time import StampClock, find_starts
from collector.parsers.log.wrappers import peel
from collector.parsers.model_facts import WANTED_KEYS, Facts, model_facts
from collector.parsers.server_answers import (
    MAX_NAME_CHARACTERS,
    Props,
    ServedModel,
    parse_models,
    parse_props,
)
from collector.settings import Settings, load_settings
from tests.fuzz.cost import check_memory, stretched, timed

Value = TypeVar("Value")

NOW = 1_800_000_000.0
DAY_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True)
class Target(Generic[Value]):
    """A reader of bytes.

    Args:
        read: parses bytes; its processor time and memory are checked.
        check: asserts properties of what was read.
        error: the documented error of `read`.
        words: texts that occur in inputs, for the dictionary of the fuzzer.
    """

    read: Callable[[bytes], Value]
    check: Callable[[bytes, Value], None]
    error: type[CollectorError]
    words: tuple[str, ...]

    def examine(self, data: bytes) -> None:
        """Read one input, and for some inputs also a long one that is made from it.

        Raises:
            Exception: a finding.
        """
        self._examine(data)
        if long := stretched(data):
            self._examine(long)
            check_memory(lambda: self._attempt(long), len(long))

    def _examine(self, data: bytes) -> None:
        value, error = timed(lambda: self._attempt(data), len(data))
        if error is not None:
            _check_message(error, data)
        else:
            assert value is not None
            self.check(data, value)

    def _attempt(self, data: bytes) -> tuple[Value | None, CollectorError | None]:
        try:
            return self.read(data), None
        except self.error as error:
            return None, error


def _check_message(error: CollectorError, data: bytes) -> None:
    """Check that an error message is readable text; each fault of the settings is one line of it."""
    message = str(error)
    assert message
    assert len(message) <= 1000 + 2 * len(data)
    assert all(line.isprintable() for line in message.split("\n")), repr(message)
    message.encode()


def _check_text(text: str) -> None:
    """Check that SQLite stores a text and shows all of it."""
    text.encode()
    assert "\0" not in text


# The Prometheus text of /metrics


def _read_exposition(data: bytes) -> dict[str, float | None]:
    return parse_exposition(data.decode("utf-8", "replace"))


def _check_samples(data: bytes, samples: dict[str, float | None]) -> None:
    assert 0 < len(samples) <= MAX_SAMPLES
    assert all(samples), "a value without a name"
    assert all(value is None or math.isfinite(value) for value in samples.values())
    assert sum(map(len, samples)) <= len(data)
    json.dumps(samples, allow_nan=False).encode()
    if all(name.isprintable() for name in samples):
        printed = "".join(
            f"{PREFIX}{name} {'nan' if value is None else repr(value)}\n" for name, value in samples.items()
        )
        assert parse_exposition(printed) == samples
        assert parse_exposition(json.dumps(printed)) == samples


# The lines of llama-server's log


@dataclass(frozen=True, slots=True)
class _Log:
    """A parsed log.

    Args:
        lines: its text.
        records: parsed from the lines.
        times: Unix seconds of the records, as of a backlog that has just been finished.
        children: children of a router that the records name.
    """

    lines: list[str]
    records: list[Record]
    times: list[int]
    children: list[tuple[int, str] | None]


def _read_log(data: bytes) -> _Log:
    lines = split_lines(data.removesuffix(b"\n") + b"\n")
    records = parse_records(lines)
    clock, times = StampClock(), list[int]()
    while len(times) < len(records):
        times += clock.times_of_backlog(records[len(times) :], NOW, find_starts([data], NOW, None))
    return _Log(lines, records, times, [spawned_child(record.message) for record in records])


def _check_log(data: bytes, log: _Log) -> None:
    assert len(log.lines) == data.removesuffix(b"\n").count(b"\n") + 1
    assert sum(map(len, log.lines)) <= len(data) + len(CUT_MARK) * (len(data) // MAX_LINE_BYTES)
    numbers = [record.line for record in log.records]
    assert numbers == sorted(set(numbers))
    assert all(0 <= number < len(log.lines) for number in numbers)
    for record in log.records:
        _check_record(record)
    assert all(time <= NOW for time in log.times)
    assert len(log.times) == len(log.records)
    assert all(child is None or (child[0] >= 0 and child[1]) for child in log.children)
    _check_nothing_lost(log)
    _check_masked(log)


def _check_record(record: Record) -> None:
    _check_text(record.message)
    assert record.message.strip()
    assert record.message == record.message.rstrip()
    assert all(character in "\t\n" or character >= " " for character in record.message)
    assert len(record.message.encode("utf-8", "replace")) <= 4 * (MAX_LINE_BYTES + len(CUT_MARK))
    assert record.level is None or record.level in LEVELS
    assert record.stamp is None or math.isfinite(record.stamp)
    assert 0 <= record.port <= 99_999


_HEAD = re.compile(
    r"(?:\[ *\d{1,5}\] ?)?(?:\d{1,9}\.\d\d\.\d{3}\.\d{3}(?: |$)(?:[IWED](?: |$))?|[IWED] +)?\s*"
)
_MASK, _JSON = "***", '{"type":'


def _check_nothing_lost(log: _Log) -> None:
    """Check that the messages contain every line in its order, without its prefix."""
    messages = [record.message for record in log.records]
    if any(_MASK in message for message in messages):
        return  # a key was masked, with its prefix
    parsed = log_lines._parse_any_format(log.lines)
    log_lines.raise_levels(parsed)
    assert log.records == parsed  # the fast paths change nothing
    if any(_JSON in line or peel(line).text != line for line in log.lines):
        return  # JSON records are rewritten, and wrappers are removed
    if any(record.kind is Kind.WHOLE or (record.kind is Kind.OPEN and record.time) for record in log.records):
        return  # of other programs, and of ik_llama.cpp: rewritten as well
    found = [line for message in messages for line in message.split("\n")]
    written = [line for line in map(str.rstrip, log.lines) if not _HEAD.fullmatch(line)]
    for line, stored in zip(written, found, strict=True):
        assert line.endswith(stored)
        assert _HEAD.fullmatch(line.removesuffix(stored)), (line, stored)


def _check_masked(log: _Log) -> None:
    """Check that a key that may follow is masked, and that masked text is not changed again."""
    following = [record for record in parse_records(log.lines, key_follows=True) if record.port == 0]
    assert not following or _MASK in following[0].message
    for message in (record.message for record in log.records):
        if "\n" not in message:
            assert [again.message for again in parse_records([f"0.00.000.000 I {message}"])] == [message]


# The JSON of /props and /models


def _read_answers(data: bytes) -> tuple[Props | None, tuple[ServedModel, ...]]:
    text = data.decode("utf-8", "replace")
    props = parse_props(text)
    try:
        return props, parse_models(text)
    except ParseError:
        return props, ()


def _check_answers(data: bytes, answers: tuple[Props | None, tuple[ServedModel, ...]]) -> None:
    props, models = answers
    for model in (*models, *([props.model] if props and props.model else [])):
        assert 0 < len(model.name) <= MAX_NAME_CHARACTERS
        assert len(model.path or "") <= len(data)
        _check_text(model.name)
        _check_text(model.path or "")
        for number in (model.exit_code, model.context_size):
            assert number is None or -(2**63) <= number < 2**63
    assert props is None or props.build is None or 0 < props.build < 10**9
    assert len(models) <= len(data)


# The header of a GGUF file


@dataclass(frozen=True, slots=True)
class _Model:
    """A header, and the facts about the model in it."""

    header: Header
    facts: Facts


def _read_gguf(data: bytes) -> _Model:
    header = _parse_header(data, WANTED_KEYS)
    return _Model(header, model_facts(header, "model-Q4_K_M.gguf", len(data), FORMAT))


def _parse_header(data: bytes, wanted: tuple[str, ...]) -> Header:
    return parse_header(io.BytesIO(data), len(data), wanted)


def _check_gguf(data: bytes, model: _Model) -> None:
    header, columns = model.header, model.facts.columns
    json.loads(json.dumps(asdict(model.facts), allow_nan=False))
    for value in columns.values():
        assert value is None or isinstance(value, str) or 0 <= value < 2**63
        _check_text(value if isinstance(value, str) else "")
    assert header.data_start <= len(data) + gguf_header.MAX_HEADER_BYTES
    assert header.tensor_count * 24 <= len(data)  # the smallest size of one
    assert len(header.values) + len(header.array_lengths) <= len(data)
    _check_same_in_small_blocks(data, header)


def _check_same_in_small_blocks(data: bytes, header: Header) -> None:
    """Check that the size of the blocks makes no difference."""
    block_bytes, gguf_header._BLOCK_BYTES = gguf_header._BLOCK_BYTES, 7
    try:
        assert repr(_parse_header(data, WANTED_KEYS)) == repr(header)  # nan is not equal to itself
    finally:
        gguf_header._BLOCK_BYTES = block_bytes


# The settings

_MEMORY = os.memfd_create("settings")
_FILE = Path(f"/proc/self/fd/{_MEMORY}")


@dataclass(frozen=True, slots=True)
class _Use:
    """Settings, and what the collector derives from them at its start.

    Args:
        settings: the parsed file.
        paths: of database, backups and models.
        is_backup_due: whether a backup is due since yesterday.
    """

    settings: Settings
    paths: tuple[Path, ...]
    is_backup_due: bool


def _read_settings(data: bytes) -> _Use:
    os.truncate(_MEMORY, 0)
    os.pwrite(_MEMORY, data, 0)
    settings = load_settings(_FILE)
    schedule = settings.backup.schedule
    is_backup_due = bool(schedule) and is_due(schedule, NOW - DAY_SECONDS, NOW)
    paths = (settings.database_path, settings.backup_directory, *settings.models_directories)
    return _Use(settings, paths, is_backup_due)


def _check_settings(_: bytes, use: _Use) -> None:
    for path in use.paths:
        assert path.is_absolute()
        path.exists()  # raises an error for a path that system calls reject
    for section in fields(use.settings):
        for value in asdict(getattr(use.settings, section.name)).values():
            _check_value(value)
    if use.settings.llama_server.url.startswith("http"):
        _check_url(use.settings.llama_server.url)


def _check_value(value: Any) -> None:
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, str):
            _check_text(part)
        else:
            assert math.isfinite(part)


def _check_url(url: str) -> None:
    """Do the first steps of the client and the resolver."""
    httpx.Request("GET", url.rstrip("/") + "/metrics")
    host = urlsplit(url).hostname
    assert host
    host.encode("idna")


TARGETS: dict[str, Target[Any]] = {
    "exposition": Target(
        _read_exposition, _check_samples, ParseError, (PREFIX, "nan", "1e309", '{a="b"} ', "\\n", "# HELP ")
    ),
    "log_lines": Target(
        _read_log,
        _check_log,
        ParseError,
        (
            *("0.00.001.132 I ", "[40463] ", "[ 8081] ", "srv  load: ", "\x1b[34m", "error: ", "warn: "),
            *('{"type":"log",', '"time":1,', '"level":"info",', '"msg":"', '"}\n', "\\u001b", "\\ud800"),
            *("--api-key", "-hft ", "hf_token=", "Authorization: ", "bearer ", "x-api-key: ", "sk-abcdef"),
            *("spawning server instance with name=", "proxying request to model ", " on port 1"),
        ),
    ),
    "server_answers": Target(
        _read_answers,
        _check_answers,
        ParseError,
        (
            *(
                '{"data":[',
                '{"id":"',
                '"status":{',
                '"value":"loaded"',
                '"args":["--model",',
                "\\ud800",
                "1e400",
            ),
            *(
                '"build_info":"b1-x"',
                '"model_path":"',
                '"model_alias":"',
                '"meta":{"n_ctx":',
                '"failed":true',
            ),
        ),
    ),
    "gguf_header": Target(
        _read_gguf,
        _check_gguf,
        ParseError,
        ("GGUF", *WANTED_KEYS, "general.alignment", "llama", "\x03\0\0\0", "\x08\0\0\0", "\x09\0\0\0"),
    ),
    "settings": Target(
        _read_settings,
        _check_settings,
        SettingsError,
        (
            *(f"[{section.name}]\n" for section in fields(Settings)),
            *(
                'path = "',
                "interval = ",
                'url = "http://',
                'schedule = "',
                "timeout = ",
                "files = [",
                "0x",
                "nan",
            ),
            *("\\u0000", '"""', "1979-05-27", "*/5 ", "sun-sat", "last", "https://[::1]:", "unix:///", "~a"),
        ),
    ),
}
