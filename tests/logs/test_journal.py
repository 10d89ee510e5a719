import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from collector.database.buffer import Buffer
from collector.errors import SourceAbsent, SourceFailed
from collector.health import OK
from collector.logs.journal import journalctl
from collector.logs.journal.reader import COMMIT_ENTRIES, JournalReader
from collector.logs.reader import LogSink
from tests.support.journal_files import BOOTS, START, UNIT, entry, journal_collector, write_journal
from tests.support.log_reading import LogCollector

Open = Callable[..., LogCollector]


pytestmark = pytest.mark.slow  # these need programs of systemd


@pytest.fixture
def journals(tmp_path: Path) -> Path:
    directory = tmp_path / "journal"
    directory.mkdir()
    return directory


@pytest.fixture
def open_collector(tmp_path: Path, journals: Path) -> Open:
    return lambda *units: journal_collector(tmp_path / "data" / "journal.db", journals, *units)


def lines(first: int, last: int, **fields: str) -> list[bytes]:
    return [
        entry(f"0.00.{n % 1000:03}.000 I srv  test: line {n}", n, **fields) for n in range(first, last + 1)
    ]


def numbered(first: int, last: int) -> list[str]:
    return [f"srv  test: line {n}" for n in range(first, last + 1)]


def test_entries_are_stored_with_their_level_and_the_time_of_the_journal(
    journals: Path, open_collector: Open
) -> None:
    write_journal(journals / "a.journal", [entry("0.00.001.000 W srv  test: beware", 7)])
    with open_collector() as collector:
        assert collector.poll() == OK
        assert collector.rows() == [
            {
                "level": "warn",
                "message": "srv  test: beware",
                "source": "llama-server",
                "timestamp": START + 7,
            }
        ]


def test_each_entry_is_stored_once_across_restarts_of_the_collector(
    journals: Path, open_collector: Open
) -> None:
    for first in (1, 4, 7):
        write_journal(journals / "a.journal", lines(first, first + 2))
        with open_collector() as collector:
            collector.poll()
            collector.poll()
    with open_collector() as collector:
        collector.poll()
        assert collector.messages() == numbered(1, 9)


def test_what_was_not_committed_is_read_again(journals: Path, open_collector: Open) -> None:
    write_journal(journals / "a.journal", lines(1, 3))
    with open_collector() as collector:
        collector.reader.poll()  # and no flush: a crash
    with open_collector() as collector:
        collector.poll()
        assert collector.messages() == numbered(1, 3)


def test_entries_of_an_earlier_boot_that_were_written_while_the_collector_was_down_are_read(
    journals: Path, open_collector: Open
) -> None:
    write_journal(journals / "a.journal", lines(1, 3))
    with open_collector() as collector:
        collector.poll()
    write_journal(journals / "a.journal", lines(4, 5))
    write_journal(journals / "b.journal", lines(6, 8, _BOOT_ID=BOOTS[1]))
    with open_collector() as collector:
        collector.poll()
        assert collector.messages() == numbered(1, 8)


def test_after_a_vacuum_reading_continues_at_the_oldest_entry_and_the_gap_is_logged_once(
    journals: Path, open_collector: Open
) -> None:
    write_journal(journals / "a.journal", lines(1, 3))
    with open_collector() as collector:
        collector.poll()
    (journals / "a.journal").unlink()
    write_journal(journals / "b.journal", lines(7, 9))
    with open_collector() as collector, capture_logs() as events:
        collector.poll()
        collector.poll()
        assert collector.messages() == [*numbered(1, 3), *numbered(7, 9)]
    assert [event["event"].startswith("the journal was vacuumed") for event in events] == [True]


def test_a_cursor_that_journalctl_refuses_is_replaced_by_the_time(
    journals: Path, open_collector: Open
) -> None:
    write_journal(journals / "a.journal", lines(1, 3))
    with open_collector() as collector:
        collector.poll()
        with collector.database.transaction() as connection:
            connection.execute(
                "UPDATE log_positions SET position = json_set(position, '$.cursor', 'no cursor')"
                " WHERE name = 'journal'"
            )
    write_journal(journals / "a.journal", lines(4, 5))
    with open_collector() as collector, capture_logs() as events:
        collector.poll()
        collector.poll()
        assert collector.messages() == numbered(1, 5)
    assert len(events) == 1


def test_only_the_named_units_are_read(journals: Path, open_collector: Open) -> None:
    others = lines(50, 52, _SYSTEMD_UNIT="nginx.service")
    seconds = lines(60, 61, _SYSTEMD_UNIT="llama-second.service")
    write_journal(journals / "a.journal", [*lines(1, 2), *others, *seconds])
    with open_collector("llama-server", "llama-second") as collector:
        collector.poll()
        assert collector.messages() == [*numbered(1, 2), *numbered(60, 61)]


def test_messages_of_systemd_about_the_unit_are_stored_with_their_writer_and_priority(
    journals: Path, open_collector: Open
) -> None:
    fields = {"UNIT": UNIT, "_SYSTEMD_UNIT": "init.scope", "_PID": "1", "SYSLOG_IDENTIFIER": "systemd"}
    write_journal(
        journals / "a.journal", [entry("Main process exited, status=9/KILL", 1, PRIORITY="4", **fields)]
    )
    with open_collector() as collector:
        collector.poll()
        (row,) = collector.rows()
        assert (row["level"], row["source"]) == ("warn", "systemd")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (b"srv  test: caf\xe9 \xff", "srv  test: caf\ufffd \ufffd"),
        (b"srv  test: bell\x07 and nul\x00 end", "srv  test: bell and nul end"),
        ("srv  test: Grüße 🦙".encode(), "srv  test: Grüße 🦙"),
        (b"srv  test: " + b"x" * 9000, "srv  test: " + "x" * 9000),
        (b"\x1b[34m0.00.001.000\x1b[0m \x1b[32mI \x1b[0msrv  test: colour", "srv  test: colour"),
    ],
)
def test_an_entry_is_stored_as_text_whatever_bytes_it_contains(
    journals: Path, open_collector: Open, message: bytes, expected: str
) -> None:
    write_journal(journals / "a.journal", [entry(message), *lines(1, 1)])
    with open_collector() as collector:
        collector.poll()
        assert collector.messages() == [expected, *numbered(1, 1)]


def test_an_entry_without_text_is_not_stored_and_not_read_again(journals: Path, open_collector: Open) -> None:
    write_journal(journals / "a.journal", [entry(""), *lines(1, 1), entry("  ", 2)])
    with open_collector() as collector:
        collector.poll()
        collector.poll()
        assert collector.messages() == numbered(1, 1)


def test_lines_of_one_record_stay_together_and_those_of_another_process_are_not_added_to_it(
    journals: Path, open_collector: Open
) -> None:
    write_journal(
        journals / "a.journal",
        [
            entry("0.00.001.000 I srv  test: template: '<|im_start|>system", 1),
            entry("You are helpful<|im_end|>", 1.001),
            entry("third-party output", 1.002, _PID="43"),
            entry("'", 1.003),
        ],
    )
    with open_collector() as collector:
        collector.poll()
        assert collector.messages() == [
            "srv  test: template: '<|im_start|>system\nYou are helpful<|im_end|>",
            "third-party output",
            "'",
        ]


def test_the_newest_record_waits_a_moment_for_its_other_lines(journals: Path, open_collector: Open) -> None:
    now = time.time() - START
    write_journal(journals / "a.journal", [*lines(1, 1), entry("0.00.002.000 I srv  test: a", now)])
    with open_collector() as collector:
        collector.poll()
        assert collector.messages() == numbered(1, 1)
        write_journal(journals / "a.journal", [entry("b", now + 0.001)])
        collector.poll_until(lambda: len(collector.rows()) > 1)
        assert collector.messages() == [*numbered(1, 1), "srv  test: a\nb"]


def test_a_child_keeps_its_models_name_across_a_restart_of_the_collector(
    journals: Path, open_collector: Open
) -> None:
    spawn = "0.00.001.000 I srv          load: spawning server instance with name=gemma-b on port 40463"
    write_journal(journals / "a.journal", [entry(spawn, 1)])
    with open_collector() as collector:
        collector.poll()
    write_journal(journals / "a.journal", [entry("[40463] 0.00.001.000 I srv  test: child", 2)])
    with open_collector() as collector:
        collector.poll()
        assert [row["source"] for row in collector.rows()] == ["llama-server", "gemma-b"]


def test_a_key_on_the_line_after_its_flag_is_masked_even_in_the_next_pass(
    journals: Path, open_collector: Open
) -> None:
    for number, argument in enumerate(("--api-key", "SECRET", "--port")):
        line = f"0.00.001.00{number} I srv          load:   {argument}"
        write_journal(journals / "a.journal", [entry(line, number)])
        with open_collector() as collector:
            collector.poll()
    with open_collector() as collector:
        assert [message.split()[-1] for message in collector.messages()] == ["--api-key", "***", "--port"]


def test_a_long_backlog_is_read_in_parts_as_the_buffer_has_room(journals: Path, tmp_path: Path) -> None:
    count = 3 * COMMIT_ENTRIES + 7
    write_journal(journals / "a.journal", lines(1, count))
    buffer = Buffer(line_capacity=500)
    arguments = [f"--directory={journals}"]
    with LogCollector(
        tmp_path / "room.db",
        lambda sink, positions: JournalReader([UNIT], sink, positions, arguments),
        buffer=buffer,
    ) as collector:
        collector.reader.poll()
        assert 0 < buffer.waiting <= 502  # and the positions of lines and requests
        collector.poll()
        assert collector.messages() == numbered(1, count)


def test_the_error_for_an_unreadable_journal_names_the_group(
    journals: Path, open_collector: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_journal(journals / "a.journal", lines(1, 1))
    hint = "No journal files were opened due to insufficient permissions."
    fake_journalctl(tmp_path, monkeypatch, f"import sys; sys.exit({hint!r})")
    with open_collector() as collector, pytest.raises(SourceFailed, match="group systemd-journal"):
        collector.poll()


def test_the_error_on_a_host_without_journalctl_recommends_files(
    open_collector: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with open_collector() as collector, pytest.raises(SourceAbsent, match=r"\[logs\] files"):
        collector.poll()


def test_a_journalctl_that_is_killed_ends_only_the_poll(
    open_collector: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_journalctl(tmp_path, monkeypatch, "import os; os.kill(os.getpid(), 7)")
    with open_collector() as collector, pytest.raises(SourceFailed, match=r"SIGBUS.*--verify"):
        collector.poll()


def test_a_journalctl_that_hangs_is_ended(
    open_collector: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journalctl, "SILENCE_SECONDS", 0.2)
    fake_journalctl(tmp_path, monkeypatch, "import time; time.sleep(60)")
    with open_collector() as collector, pytest.raises(SourceFailed, match="wrote nothing"):
        collector.poll()


def test_an_empty_journal_adds_no_row_and_is_not_an_error(open_collector: Open) -> None:
    with open_collector() as collector:
        assert collector.poll() == OK
        assert collector.rows() == []


def fake_journalctl(directory: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Replace journalctl by a program that imitates a state of the host."""
    program = directory / "journalctl"
    program.write_text(f"#!{sys.executable}\n{code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")


def test_nothing_is_read_while_the_buffer_is_full(journals: Path) -> None:
    write_journal(journals / "a.journal", lines(1, 2))
    buffer = Buffer(line_capacity=0)
    reader = JournalReader([UNIT], LogSink(buffer), {}, [f"--directory={journals}"])
    assert reader.poll() == OK
    assert reader.has_more
    assert buffer.waiting == 0
