import os
import re
import shutil
import time
from pathlib import Path

import pytest

from collector.catalog import open_database
from collector.cli import main
from tests.support.journal_files import UNIT, entry, write_journal
from tests.support.paths import RECORDINGS

LOG = RECORDINGS / "requests" / "b10229" / "server.log"


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    file = tmp_path / "collector.toml"
    file.write_text(f'[database]\npath = "{tmp_path}/d.db"\n[retention]\nrequests_max_age_days = 10\n')
    return file


def run(settings: Path, *arguments: str | Path) -> int:
    return main(["--config", str(settings), "import", *map(str, arguments)])


def test_each_file_is_a_line_that_says_what_became_of_its_requests(
    settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new, old = tmp_path / "new.log", tmp_path / "old.log"
    shutil.copyfile(LOG, new)
    shutil.copyfile(RECORDINGS / "requests" / "b9294" / "server.log", old)
    os.utime(old, (time.time() - 11 * 86_400,) * 2)
    assert run(settings, new, old, new) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{new}: 40 requests added",
        f"{old}: 0 requests added, 40 are older than [retention] requests_max_age_days",
        f"{new}: 0 requests added, 40 were there already",
    ]
    assert main(["--config", str(settings), "requests", "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 40


def test_a_file_that_cannot_be_read_does_not_keep_the_others_from_it(
    settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(settings, tmp_path / "missing.log", LOG) == 1
    captured = capsys.readouterr()
    assert re.fullmatch(r"error: .*missing\.log cannot be read: No such file or directory\n", captured.err)
    assert captured.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to import: name a log file, or a unit with --journal"),
        (("a", "b", "--ended", "1d"), "--ended is about the processes of one file: name one file"),
    ],
)
def test_arguments_that_mean_nothing_are_an_error(
    arguments: tuple[str, ...], message: str, settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(settings, *arguments) == 1
    assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(settings, "a", "--ended", "yesterday")
    assert "'yesterday' is no time: write 2026-11-26 18:30" in capsys.readouterr().err


def test_a_running_collector_is_to_be_stopped_first(
    settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_database(tmp_path / "d.db"):
        assert run(settings, LOG) == 1
    assert "Stop it while requests are imported." in capsys.readouterr().err


def use_journal(log: Path, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let journalctl read a journal with the lines of a log, at the times of their stamps."""
    journal = directory / "journal"
    journal.mkdir()
    seconds, entries = 0.0, []
    for line in log.read_text().splitlines():
        if stamp := re.match(r"(\d+)\.(\d\d\.\d{3})\.", line):
            seconds = int(stamp[1]) * 60 + float(stamp[2])
        entries.append(entry(line, seconds))
    write_journal(journal / "a.journal", entries)
    program = directory / "bin" / "journalctl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shutil.which("journalctl")} --directory={journal} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def test_a_request_that_waits_for_its_access_line_at_the_end_of_the_journal_is_imported(
    settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.write_text(settings.read_text().replace("= 10", "= 0"))
    text = (RECORDINGS / "requests" / "b7710" / "server.log").read_text()
    release = "id  0 | task 84 | stop processing: n_tokens = 52, truncated = 0\n"
    log = tmp_path / "cut.log"
    log.write_text(text[: text.index(release) + len(release)])
    use_journal(log, tmp_path, monkeypatch)
    assert run(settings, "--journal", UNIT) == 0
    assert run(settings, log) == 0
    assert ": 0 requests added, " in capsys.readouterr().out


def test_a_journal_has_the_requests_of_its_unit_from_a_time_on_once(
    settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.write_text(settings.read_text().replace("= 10", "= 0"))
    use_journal(LOG, tmp_path, monkeypatch)
    assert run(settings, "--journal", UNIT) == 0
    assert run(settings, "--journal", UNIT) == 0
    assert run(settings, LOG) == 0
    assert run(settings, "--journal", UNIT, "--since", "2027-01-01") == 0
    assert [line.partition(": ")[2] for line in capsys.readouterr().out.splitlines()] == [
        "40 requests added",
        "0 requests added, 40 were there already",
        "0 requests added, 40 were there already",
        "0 requests added",
    ]
    with open_database(tmp_path / "d.db") as database:
        (kinds,) = database.query("SELECT DISTINCT time_source, origin FROM requests")
        assert tuple(kinds.values()) == ("journal", "import")
        assert not database.query("SELECT 1 FROM logs WHERE source <> 'collector'")
        assert not database.query("SELECT 1 FROM log_positions")
