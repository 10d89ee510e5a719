"""Inputs that the fuzzer starts from: recordings, small generated files, and its former findings."""

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support.gguf_files import ARRAY, STRING, array, pair, raw_header, text, write_model

TESTS = Path(__file__).parents[1]
FINDINGS = Path(__file__).with_name("findings")
SETTINGS = TESTS.parent / "config" / "collector.toml"

_WINDOW_LINES = 12


def seeds(name: str) -> list[bytes]:
    """Return the first inputs of a target, with its former findings.

    Args:
        name: of the target.
    """
    return [*_SEEDS[name](), *(path.read_bytes() for path in findings(name))]


def findings(name: str) -> list[Path]:
    """Return inputs that once showed a fault."""
    return sorted((FINDINGS / name).glob("*"))


def _expositions() -> Iterator[bytes]:
    for path in _recorded("http", ".prom"):
        yield path.read_bytes()
        yield json.dumps(path.read_text()).encode()


def _logs() -> Iterator[bytes]:
    """Yield a few lines at a time: the fuzzer is faster with short inputs."""
    for path in _recorded("logs", ".log", ".jsonl"):
        lines = path.read_bytes().splitlines(keepends=True)
        for start in range(0, len(lines), _WINDOW_LINES):
            yield b"".join(lines[start : start + _WINDOW_LINES])
    for line in _LINES_WITH_KEYS:
        yield f"{line}\n0.00.001.000 I srv  load:   next\n".encode()


_LINES_WITH_KEYS = (
    "0.00.001.000 I srv  load:   --api-key",
    "llama-server --api-key a-secret --port 1",
    "x-api-key: a-secret",
    "LLAMA_API_KEY='a-secret' -hft another",
    '{"type":"log","level":"info","msg":"Authorization: Bearer a-secret"}',
    "used sk-abcdefgh and hf_abcdefghijkl here",
)


def _answers() -> Iterator[bytes]:
    for path in _recorded("http", ".json"):
        yield path.read_bytes()


def _headers() -> Iterator[bytes]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "model.gguf")
        for big_endian in (False, True):
            numbers: dict[str, int | list[int]] = {
                "llama.context_length": 8192,
                "llama.attention.head_count_kv": [8, 0],
                "split.count": 2,
            }
            write_model(path, numbers=numbers, texts={"general.type": "model"}, big_endian=big_endian)
            yield path.read_bytes()
    yield raw_header([pair("tokenizer.ggml.tokens", ARRAY, array(STRING, 2, text("a") + text("bc")))])


def _settings() -> Iterator[bytes]:
    whole = SETTINGS.read_text()
    yield whole.encode()
    lines = [line.removeprefix("# ") if " = " in line else line for line in whole.splitlines()]
    yield "\n".join(lines).encode()
    section = ""
    for line in lines:
        section = line if line.startswith("[") else section
        if " = " in line:
            yield f"{section}\n{line}\n".encode()


def _recorded(folder: str, *suffixes: str) -> list[Path]:
    return sorted(path for path in (TESTS / "recordings" / folder).iterdir() if path.suffix in suffixes)


_SEEDS: dict[str, Callable[[], Iterator[bytes]]] = {
    "exposition": _expositions,
    "log_lines": _logs,
    "server_answers": _answers,
    "gguf_header": _headers,
    "settings": _settings,
}
