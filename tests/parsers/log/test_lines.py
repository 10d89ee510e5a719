import json
import re
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.parsers.log import lines as log_lines
from collector.parsers.log.formats import parse_line
from collector.parsers.log.lines import parse_records, spawned_child
from collector.parsers.log.record import CUT_MARK, LEVELS, MAX_LINE_BYTES, Record, split_lines
from tests.fuzz.cost import timed
from tests.support.paths import RECORDINGS as RECORDED

FOLDER = RECORDED / "logs"
RECORDINGS = sorted(path for path in FOLDER.iterdir() if path.suffix != ".json")


def records(text: str | bytes) -> list[Record]:
    return parse_records(split_lines(text.encode() if isinstance(text, str) else text))


def messages(text: str | bytes) -> list[str]:
    return [record.message for record in records(text)]


def summary(parsed: list[Record]) -> dict[str, object]:
    """Return what the file of expectations beside a recording contains."""
    return {
        "records": len(parsed),
        "levels": dict(sorted(Counter(str(record.level) for record in parsed).items())),
        "ports": dict(sorted(Counter(str(record.port) for record in parsed).items())),
        "last_stamp": next((record.stamp for record in reversed(parsed) if record.stamp is not None), None),
        "first": parsed[0].message,
        "last": parsed[-1].message,
        "of_several_lines": [record.message.split("\n") for record in parsed if "\n" in record.message],
    }


def test_there_are_recordings() -> None:
    assert len(RECORDINGS) >= 8


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.name)
def test_every_recorded_log_has_the_expected_records(recording: Path) -> None:
    expected = json.loads(recording.with_name(f"{recording.name}.json").read_text())
    assert summary(records(recording.read_bytes())) == expected


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.name)
def test_no_text_of_a_recorded_log_is_lost(recording: Path) -> None:
    written = re.sub(rb"\x1b\[[0-9;]*m", b"", recording.read_bytes()).decode()
    if recording.suffix == ".jsonl":
        values = [json.loads(line) for line in written.splitlines()]
        written = "\n".join(value.get("msg", "").strip("\n") for value in values if value["type"] == "log")
    prefix = re.compile(r"^(\[ *\d+\] )?(\d+\.\d\d\.\d{3}\.\d{3} [IWED] )?")
    lines = [prefix.sub("", line).rstrip() for line in written.split("\n")]
    stored = Counter(line for message in messages(recording.read_bytes()) for line in message.split("\n"))
    assert Counter(line for line in lines if line) - stored == Counter()


@pytest.mark.parametrize(
    ("line", "level", "message", "stamp", "port"),
    [
        ("0.00.001.132 I srv  init: hello", "info", "srv  init: hello", 0.001, 0),
        ("125.59.999.001 W low memory  ", "warn", "low memory", 7559.999, 0),
        ("0.00.001.000 E bad", "error", "bad", 0.001, 0),
        ("0.00.001.000 D detail", "debug", "detail", 0.001, 0),
        ("[40463] 0.00.002.000 W child", "warn", "child", 0.002, 40463),
        ("[ 8081] 0.00.002.000 I child", "info", "child", 0.002, 8081),
        ("[40463] without prefix", None, "without prefix", None, 40463),
        ('{"type":"log","time":3537,"level":"warn","msg":"a\\nb\\n"}', "warn", "a\nb", 0.003537, 0),
        ('{"type":"log","time":1,"level":"odd","msg":"x"}', None, "x", 1e-06, 0),
        ('{"type":"log","time":1e400,"level":"info","msg":"x"}', "info", "x", None, 0),
        ('{"type":"fit","data":{"a":1}}', None, '{"type":"fit","data":{"a":1}}', None, 0),
        ('{"type":"log","msg":"torn', None, '{"type":"log","msg":"torn', None, 0),
        ('[40463] {"type":"log","time":5,"level":"error","msg":"x"}', "error", "x", 5e-06, 40463),
        ("srv  init: hello", None, "srv  init: hello", None, 0),
        ("0.00.001 I no such stamp", None, "0.00.001 I no such stamp", None, 0),
        (
            "llama_model_load: error loading model: x",
            "error",
            "llama_model_load: error loading model: x",
            None,
            0,
        ),
        ("CUDA error: out of memory", "error", "CUDA error: out of memory", None, 0),
        ("warning: no usable GPU found", "warn", "warning: no usable GPU found", None, 0),
        ("ggml.c:12: GGML_ASSERT(x) failed", "critical", "ggml.c:12: GGML_ASSERT(x) failed", None, 0),
        ("terminate called after throwing", "critical", "terminate called after throwing", None, 0),
        ("0 errors were found", None, "0 errors were found", None, 0),
    ],
)
def test_a_line_is_parsed_into_level_message_stamp_and_port(
    line: str, level: str | None, message: str, stamp: float | None, port: int
) -> None:
    (record,) = records(line + "\n")
    assert (record.level, record.message, record.port) == (level, message, port)
    assert record.stamp == (None if stamp is None else pytest.approx(stamp))


def test_the_format_may_change_in_the_middle() -> None:
    text = (
        "0.00.001.000 I srv  a: one\n"
        '{"type":"log","time":1,"level":"info","msg":"srv  a: two\\n"}\n'
        "srv  a: three\n"
        "\x1b[34m0.00.001.000\x1b[0m \x1b[32mI \x1b[0msrv  a: four\n"
        "[40463] 0.00.001.000 I srv  a: five\n"
    )
    assert messages(text) == [f"srv  a: {n}" for n in ("one", "two", "three", "four", "five")]


def test_lines_of_no_known_form_are_records_of_their_own_unless_a_record_was_begun() -> None:
    assert messages("line 1\nline 2\n  indented\nline 3\n") == ["line 1", "line 2\n  indented", "line 3"]
    assert messages("0.00.001.000 I a: b\nmore\n\n more\n") == ["a: b\nmore\n more"]


def test_a_line_with_an_error_never_becomes_part_of_the_record_before() -> None:
    text = "0.00.001.000 I srv  a: b\nerror: device lost\n"
    assert [(r.level, r.message) for r in records(text)] == [
        ("info", "srv  a: b"),
        ("error", "error: device lost"),
    ]


def test_lines_of_another_process_do_not_continue_a_record() -> None:
    assert messages("[1] 0.00.001.000 I a: b\n[2] more\n") == ["a: b", "more"]


def test_a_record_over_the_size_limit_is_divided_and_loses_nothing() -> None:
    text = "0.00.001.000 I a: b\n" + "".join(f"  {n:06}\n" for n in range(20_000))
    parsed = messages(text)
    assert len(parsed) > 1
    assert max(map(len, parsed)) <= MAX_LINE_BYTES
    assert "\n".join(parsed).count("\n") == 20_000


@pytest.mark.parametrize("length", [MAX_LINE_BYTES + 1, 5 * MAX_LINE_BYTES])
def test_an_overlong_line_is_cut_and_marked_and_its_neighbours_are_whole(length: int) -> None:
    before, cut, after = messages(b"srv  a: b\nx: " + b"y" * length + b"\nsrv  c: d\n")
    assert (before, after) == ("srv  a: b", "srv  c: d")
    assert cut.startswith("x: yyy")
    assert cut.endswith(CUT_MARK)
    assert len(cut) == MAX_LINE_BYTES + len(CUT_MARK)


def test_a_cut_leaves_no_half_character() -> None:
    (cut,) = messages("é".encode() * MAX_LINE_BYTES + b"\n")
    assert "\ufffd" not in cut


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"a\x00b\x07c\td\r", "abc\td"),
        (b"caf\xe9", "caf\ufffd"),
        (b"\x1b[1;31mred\x1b[0m \x1b[2Kline", "red line"),
        (b'{"type":"log","level":"info","msg":"a\\u0000b\\u001b[31mc\\ud800d"}', "abc?d"),
        ("日本語 🦙".encode(), "日本語 🦙"),
        ("a\u2028b\x85c".encode(), "a\u2028b\x85c"),
    ],
)
def test_a_line_becomes_storable_text_whatever_bytes_it_contains(line: bytes, expected: str) -> None:
    assert messages(line + b"\n") == [expected]


@pytest.mark.parametrize(
    "line",
    [
        "llama-server --api-key SECRET --port 1",
        "llama-server --api-key=SECRET",
        "llama-server --api-key SECRET,SECRET",
        "llama-server --hf-token SECRET",
        "llama-server -hft SECRET",
        "my-other-api-key: SECRET",
        "Authorization: Bearer SECRET",
        '{"Authorization": "Bearer SECRET"}',
        "header bearer SECRET",
        "X-Api-Key: SECRET",
        "LLAMA_API_KEY=SECRET",
        '"api_key":"SECRET"',
        "used sk-SECRETSECRET here",
        "used hf_SECRETSECRETSECRET here",
        "0.00.001.000 I srv  a: --api-key SECRET",
        '{"type":"log","level":"info","msg":"--api-key SECRET"}',
        '{"type":"log","level":"info","msg":"--api\\u002dkey SECRET"}',
        '{"type":"log","level":"info","msg":"Authori\\u001b[0mzation: SECRET"}',
        "[40463] 0.00.001.000 I srv  a: --api-key SECRET",
        "0.00.001.000 I a: b\n  --api-key SECRET",
        "0.00.001.000 I srv          load:   --api-key\n0.00.001.000 I srv          load:   SECRET",
    ],
)
def test_an_api_key_is_masked(line: str) -> None:
    text = "\n".join(messages(line + "\n"))
    assert "SECRET" not in text
    assert "***" in text


@pytest.mark.parametrize(
    "line",
    [
        "srv  a: --api-key-file /etc/key --port 8080",
        "srv  a: no API key is set",
        "slot a: task-12345678 desk-1234567",
        "print_info: EOS token        = 2 '</s>'",
        "srv  a: hf_repo = ggml-org/models",
    ],
)
def test_text_that_is_not_a_key_is_not_masked(line: str) -> None:
    assert messages(line + "\n") == [line]


def test_the_key_after_a_flag_in_the_lines_before_is_masked() -> None:
    (record,) = parse_records(["0.00.001.000 I srv          load:   SECRET"], key_follows=True)
    assert record.message == "srv          load:   ***"
    (record,) = parse_records(["0.00.001.000 I srv  a: -hft SECRET load: SECRET"], key_follows=True)
    assert record.message == "srv  a: -hft *** load: ***"


def test_lines_of_a_router_show_which_model_has_which_port() -> None:
    assert spawned_child("srv          load: spawning server instance with name=a b on port 40463") == (
        40463,
        "a b",
    )
    assert spawned_child("srv  proxy_reques: proxying request to model gemma on port 1") == (1, "gemma")
    assert spawned_child("user said: spawning server instance with name=x on port 1") is None


@given(st.binary(max_size=400))
def test_any_bytes_become_records_that_sqlite_can_store(data: bytes) -> None:
    for record in records(data + b"\n"):
        assert record.message.strip()
        record.message.encode()
        assert "\0" not in record.message
        assert record.level is None or record.level in LEVELS


@given(st.text(min_size=1, max_size=80).filter(lambda text: text.strip() != ""))
def test_any_line_is_parsed_by_some_format(text: str) -> None:
    assert parse_line(text).message == parse_line(text).message.rstrip()


JSONL_LINES = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["log", "log", "log", "metric"])},
        optional={
            "time": st.one_of(st.integers(), st.none(), st.text(max_size=3)),
            "level": st.one_of(st.sampled_from(["info", "warn", "loud"]), st.integers()),
            "msg": st.one_of(
                st.text(max_size=40), st.sampled_from(["[ 8081] srv child: line\n", "", " \n", "x\n"])
            ),
        },
    ).map(json.dumps),
    max_size=8,
)


@given(JSONL_LINES)
def test_lines_of_json_parsed_together_are_the_same_records_as_one_by_one(lines: list[str]) -> None:
    assert parse_records(lines) == log_lines._parse_any_format(lines)


def test_an_object_that_continues_in_the_next_line_is_not_a_record_of_json() -> None:
    lines = ['{"type":"a","b":[1', '{"type":1}]},5']
    assert [record.message for record in parse_records(lines)] == lines
    lines = ['{"type":"log","msg":"a","b":[1', '{"type":1}]},{"type":"log","msg":"b"}']
    assert [record.message for record in parse_records(lines)] == lines


@pytest.mark.parametrize("piece", ["a-", "api_", "bearer ", "--api-key ", "sk-", "authorization "])
def test_a_long_line_full_of_words_that_may_be_keys_is_parsed_in_linear_time(piece: str) -> None:
    line = "hf " + piece * (MAX_LINE_BYTES // len(piece))
    timed(lambda: parse_records([line]), len(line))


def test_a_long_line_that_names_many_children_is_parsed_in_linear_time() -> None:
    line = "srv x: proxying request to model " * 30_000 + " on port x"
    assert timed(lambda: spawned_child(line), MAX_LINE_BYTES) is None


def test_a_chunk_of_json_lines_is_parsed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_lines, "_parse_any_format", lambda _: pytest.fail("one by one"))
    lines = (FOLDER / "single.jsonl").read_text().splitlines()
    assert len(parse_records(lines)) > 10


@given(
    st.lists(
        st.sampled_from(
            (
                '{"type":"log","time":5,"level":"info","msg":"srv  a: text\\n"}',
                '{"type":"log","msg":"[4001] 0.00.001.000 I srv  a: text"}',
                '{"type":"log","a":[{}',
                '{"type":"log","b":2}]}',
                '{"type":"log","x":1},{"type":"log","y":2}',
                '{"type":"log","x":1},5,{}',
                '{"type":"other"} ',
                "srv  a: text",
            )
        ),
        max_size=6,
    )
)
def test_json_lines_that_are_parsed_together_are_those_that_are_parsed_one_by_one(lines: list[str]) -> None:
    together = parse_records(lines)
    with patch.object(log_lines, "parse_jsonl_lines", lambda _: None):
        assert together == parse_records(lines)
