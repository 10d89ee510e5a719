"""Levels: who asks for error and critical finds every failure of a server, and nothing that others wrote."""

import json
from pathlib import Path

import pytest

from collector.database.buffer import Buffer
from collector.logs.reader import LogSink
from collector.parsers.log.lines import parse_records
from collector.parsers.log.record import split_lines
from tests.support.paths import RECORDINGS
from tests.trouble.failures import FAILURES, Failure

FOLDER = RECORDINGS / "trouble"
ALARMS = ("error", "critical")


def rows(data: bytes) -> list[tuple[str, str, str]]:
    """Return level, message and source of the rows that a log becomes."""
    records = parse_records(split_lines(data))
    stored, _ = LogSink(Buffer()).rows(records, [0] * len(records), {})
    return [(str(level), str(message), str(source)) for level, message, source, _ in stored]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.report)
def test_a_failure_is_found_by_its_level_with_its_source(failure: Failure) -> None:
    found = [
        (level, source)
        for level, message, source in rows(failure.lines.encode() + b"\n")
        if failure.text in message and level in ALARMS
    ]
    assert found, rows(failure.lines.encode() + b"\n")
    level, source = found[0]
    assert source == failure.source
    assert failure.level == "error" or level == "critical"


def test_there_are_enough_failures() -> None:
    assert len(FAILURES) >= 60
    assert len({failure.report for failure in FAILURES}) == len(FAILURES)


HARMLESS = {
    "ollama#8770": '2025/02/02 09:23:09 routes.go:1187: INFO server config env="map[OLLAMA_DEBUG:false]"',
    "ollama#11418": '{"level":30,"time":1752516972752,"pid":1,"hostname":"h","msg":"waiting for server"}',
    "llama-swap#75": '[llama-swap] ::1 [2025-03-20 11:27:15] "GET / HTTP/1.1" 200 390 "curl/8.5.0" 11.05us\n'
    "!!! Connection refused on http://127.0.0.1:9999/health, ttl 4995s",
    "llama-swap#57": "srv  log_server_r: request: GET /health 127.0.0.1 503\n"
    "!!! Health check error: status code: 503",
}


@pytest.mark.parametrize("report", HARMLESS)
def test_what_programs_print_while_all_is_well_is_no_alarm(report: str) -> None:
    assert [row for row in rows(HARMLESS[report].encode() + b"\n") if row[0] in ALARMS] == []


QUOTED = (
    "error: cannot open file",
    "Error: ENOENT: no such file or directory, open '/etc/x'",
    "fatal: not a git repository (or any of the parent directories): .git",
    "fatal error: foo.h: No such file or directory",
    "ggml.c:1: GGML_ASSERT(a) failed",
    "GGML_ASSERT(n > 0) failed, it says",
    "/home/u/llama.cpp/ggml/src/ggml-cuda/ggml-cuda.cu:97: CUDA error",
    "CUDA error: out of memory",
    "cudaMalloc failed: out of memory",
    "Segmentation fault (core dumped)",
    "Killed",
    "start.sh: line 3: 13990 Killed                  llama-server",
    "terminate called after throwing an instance of 'std::bad_alloc'",
    "  what():  std::bad_alloc",
    "double free or corruption (out)",
    "panic: runtime error: index out of range [3] with length 3",
    "goroutine 1 [running]:",
    "Traceback (most recent call last):",
    '  File "a.py", line 3, in <module>',
    "ValueError: failed to parse",
    "libggml-base.so(ggml_abort+0x152)[0x72edb99cda02]",
    "#0  0x00007f5cf16b7836 in raise () from /lib/libc.so.6",
    "main: error: unable to load model",
    "llama_model_load: error loading model: missing tensor",
    "srv  llama_server: exiting due to model loading error",
    "Memory access fault by GPU node-1",
    "warning: unused variable 'x'",
    "Out of memory: Killed process 4711 (llama-server)",
    "Why does my build say this? It aborted; is the GPU broken?",
    "```",
    "I have no idea, and nothing else failed to work.",
    "",
)
"""What users paste and models answer."""

TASK = "slot update_slots: id  0 | task 6890 | prompt done, n_tokens = 143"


def stamped(text: list[str], level: str, opener: str) -> list[str]:
    """A build of today that prints text of others: at -lv 5, or in a warning."""
    return [
        f"18.41.194.762 I {TASK}",
        f"18.41.194.792 {level} {opener}{text[0]}",
        *text[1:],
        f"18.41.195.000 I {TASK}",
    ]


def children(text: list[str], level: str, opener: str) -> list[str]:
    """The same by a child of a router."""
    return [f"[49457] {line}" for line in stamped(text, level, opener)]


def without_stamps(text: list[str], level: str, opener: str) -> list[str]:
    """`--no-log-timestamps`."""
    return [f"I {TASK}", f"{level} {opener}{text[0]}", *text[1:], f"I {TASK}"]


def composed(text: list[str], level: str, opener: str) -> list[str]:
    """`docker compose logs`."""
    return [f"llama-1  | {line}" for line in stamped(text, level, opener)]


def ik(text: list[str], _level: str, _opener: str) -> list[str]:
    """ik_llama.cpp with --verbose."""
    end = (
        'INFO [            update_slots] kv cache rm [p0, end) | tid="1" timestamp=1762478090 id_slot=0 p0=0'
    )
    return [end, f"add_text: <|im_start|>user\n{text[0]}", *text[1:], "<|im_end|>", end]


def jsonl(text: list[str], level: str, opener: str) -> list[str]:
    """`--log-jsonl`."""
    name = {"D": "debug", "W": "warn", "I": "info"}[level]
    message = "\n".join([opener + text[0], *text[1:]])
    return [json.dumps({"type": "log", "time": 1, "level": name, "msg": message}, separators=(",", ":"))]


def slog(text: list[str], _level: str, _opener: str) -> list[str]:
    """Ollama in debug mode."""
    return [
        f"time=2026-05-01T10:00:00.000Z level=DEBUG source=server.go:9 msg=completion prompt={json.dumps(' '.join(text))}"
    ]


OPENERS = (
    ("W", "common_chat_peg_parse: unparsed peg-native output: "),
    ("D", "srv    operator(): prompt: "),
    ("D", "common_chat_params_init: chat template, example_format: '<|im_start|>user "),
    ("D", "srv  update_chat_: Parsed message: "),
    ("D", "srv          send: generated text: "),
)


def traffic() -> list[str]:
    """Return logs of servers in ordinary work, with what users and models wrote."""
    lines = []
    for start in range(len(QUOTED)):
        text = [*QUOTED[start:], *QUOTED[:start]]
        for form in (stamped, children, without_stamps, composed, ik, jsonl, slog):
            for level, opener in OPENERS:
                lines += form(text, level, opener)
    return lines


def test_text_of_users_and_models_is_no_alarm() -> None:
    lines = traffic()
    assert len(lines) > 10_000
    alarms = [row for row in rows("\n".join([*lines, ""]).encode()) if row[0] in ALARMS]
    assert alarms == []


@pytest.mark.parametrize("log", sorted((RECORDINGS / "logs").glob("*.log")), ids=lambda path: path.name)
def test_a_server_in_ordinary_work_gives_only_the_errors_that_it_reports(log: Path) -> None:
    alarms = [message for level, message, _ in rows(log.read_bytes()) if level in ALARMS]
    assert [message for message in alarms if not any(word in message for word in REPORTED)] == []


REPORTED = (
    "gguf_init_from_reader",
    "send_error",
    "exceeds the available context",
    "exited with status",
    "failed to load",
    "exiting due to",
)
