import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.errors import ParseError
from collector.parsers.exposition import MAX_SAMPLES, parse_exposition, resolution
from tests.support.paths import RECORDINGS as RECORDED

RECORDINGS = sorted((RECORDED / "http").glob("*.prom"))


def test_there_are_recordings() -> None:
    assert len(RECORDINGS) >= 5


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.stem)
def test_every_recorded_answer_gives_each_of_its_values(recording: Path) -> None:
    text = recording.read_text()
    expected = {
        line.split()[0].removeprefix("llamacpp:"): float(line.split()[1])
        for line in text.splitlines()
        if line and not line.startswith("#")
    }
    assert len(expected) >= 15
    assert parse_exposition(text) == expected


def test_the_quoted_json_form_of_some_builds_is_the_same() -> None:
    text = RECORDINGS[0].read_text()
    assert parse_exposition(json.dumps(text)) == parse_exposition(text)


@pytest.mark.parametrize("value", ["nan", "-nan", "inf", "-inf", "+Inf", "NaN", "1e309"])
def test_what_is_no_number_is_unknown(value: str) -> None:
    assert parse_exposition(f"llamacpp:x {value}\nllamacpp:y 1\n") == {"x": None, "y": 1.0}


def test_labels_stay_a_part_of_the_name() -> None:
    line = 'llamacpp:spec_decode_num_accepted_tokens_per_pos_total{position="1"} 5\n'
    assert parse_exposition(line) == {'spec_decode_num_accepted_tokens_per_pos_total{position="1"}': 5.0}


def test_values_of_other_programs_are_stepped_over() -> None:
    assert parse_exposition("process_cpu_seconds_total 5\nllamacpp:x 2\r\n") == {"x": 2.0}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<html></html>",
        "# only a comment\n",
        "llamacpp:x\n",
        "llamacpp:x y\n",
        '"llamacpp:x 1',
        "llamacpp: \n",
        "llamacpp: 5\n",
        "5",
    ],
)
def test_another_text_is_refused(text: str) -> None:
    with pytest.raises(ParseError, match="/metrics"):
        parse_exposition(text)


def test_a_text_without_end_is_refused() -> None:
    with pytest.raises(ParseError, match=str(MAX_SAMPLES)):
        parse_exposition("".join(f"llamacpp:x{number} 1\n" for number in range(MAX_SAMPLES + 1)))


@given(st.text())
def test_any_text_gives_finite_values_or_a_parse_error(text: str) -> None:
    for candidate in (text, f"llamacpp:{text}", f"llamacpp:a {text}"):
        try:
            samples = parse_exposition(candidate)
        except ParseError:
            continue
        assert all(value is None or math.isfinite(value) for value in samples.values())


@given(
    st.dictionaries(
        st.from_regex(r"[a-z_]{1,20}", fullmatch=True), st.floats(allow_nan=False, allow_infinity=False)
    )
)
def test_what_a_server_prints_is_what_is_read(values: dict[str, float]) -> None:
    text = "llamacpp:always 1\n" + "".join(f"llamacpp:{name} {value!r}\n" for name, value in values.items())
    assert parse_exposition(text) == {"always": 1.0} | values


@pytest.mark.parametrize(
    ("value", "whole", "expected"),
    [
        (0, True, 0),
        (999_999, True, 0),
        (1_234_560, True, 10),
        (123_456_000, True, 1000),
        (0.79384, False, 1e-6),
        (12, False, 1e-4),
        (123_457, False, 1),
    ],
)
def test_the_resolution_is_that_of_six_significant_digits(value: float, whole: bool, expected: float) -> None:  # noqa: FBT001
    assert resolution(value, whole=whole) == pytest.approx(expected)


@given(st.floats(1e-3, 1e12), st.booleans())
def test_the_resolution_bounds_the_rounding_of_a_printed_counter(value: float, whole: bool) -> None:  # noqa: FBT001
    value = float(round(value)) if whole else value
    printed = float(f"{value:.6g}")
    assert abs(printed - value) <= resolution(printed, whole=whole) / 2 * 1.0001 or value == 0
