"""Logs without the records of clients: what was found in them stays found.

`2024-named-values` is no recording: it is put together after lines in public issues.
"""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.support.request_fixture import FOLDER, KNOWN, as_lines, make_fixture, requests_of

FIXTURES = sorted(path.name for path in FOLDER.iterdir())


@pytest.mark.parametrize("name", FIXTURES)
def test_the_requests_of_a_fixture_are_those_that_stand_beside_it(name: str) -> None:
    expected = [json.loads(line) for line in (FOLDER / name / "requests.jsonl").read_text().splitlines()]
    assert expected
    assert [asdict(one) for one in requests_of(FOLDER / name / "server.log")] == expected


def test_a_line_of_a_new_build_is_listed_and_known_ones_are_not(tmp_path: Path) -> None:
    log = tmp_path / "new.log"
    text = (KNOWN / "b11434-default" / "server.log").read_text()
    log.write_text(text.replace("stop processing: n_tokens", "processing has ended: n_tokens"))
    heading, *forms = make_fixture(log, "b12000", tmp_path)
    assert heading == f"{tmp_path / 'b12000'}: 74 requests, 74 lost"
    (form,) = forms
    assert form.startswith("not understood, 78 times: slot      release: id  ")
    assert "processing has ended: n_tokens = " in form
    assert (tmp_path / "b12000" / "server.log").read_text() == log.read_text()


@pytest.mark.parametrize("name", sorted(path.name for path in KNOWN.iterdir()))
def test_nothing_in_a_known_log_is_listed(name: str, tmp_path: Path) -> None:
    log = KNOWN / name / "server.log"
    (heading,) = make_fixture(log, "again", tmp_path)
    assert f"{len(requests_of(log))} requests" in heading
    assert (tmp_path / "again" / "requests.jsonl").read_text() == as_lines(requests_of(log))


def test_a_name_that_is_a_path_is_refused(tmp_path: Path) -> None:
    (error,) = make_fixture(KNOWN / "b5036" / "server.log", "../b5036", tmp_path)
    assert error.startswith("error: '../b5036' is no name of a fixture")
    assert not list(tmp_path.iterdir())
