import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from collector.database.buffer import Buffer
from collector.errors import SourceAbsent, SourceFailed
from collector.health import OK
from collector.logs import chunk, files, follower, rewrite, tail
from collector.parsers.log.record import CUT_MARK, MAX_LINE_BYTES
from tests.support.log_reading import LogCollector, file_collector
from tests.support.paths import RECORDINGS as RECORDED

Open = Callable[..., LogCollector]

RECORDINGS = RECORDED / "logs"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "llama.log"


@pytest.fixture
def open_collector(tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Start another collector at each call; the newest record does not wait for more of its lines."""
    monkeypatch.setattr(tail, "SETTLE_SECONDS", 0.0)

    def open_it(
        *patterns: str | Path, minimum_level: str = "debug", buffer: Buffer | None = None
    ) -> LogCollector:
        database = tmp_path / "data" / "logs.db"
        return file_collector(database, *(patterns or (log,)), minimum_level=minimum_level, buffer=buffer)

    return open_it


def line(number: int) -> str:
    return f"{number // 60}.{number % 60:02}.000.000 I srv  test: line {number}\n"


def lines(first: int, last: int) -> str:
    return "".join(map(line, range(first, last + 1)))


def numbered(first: int, last: int) -> list[str]:
    return [f"srv  test: line {n}" for n in range(first, last + 1)]


def append(path: Path, text: str | bytes) -> None:
    with path.open("ab") as file:
        file.write(text.encode() if isinstance(text, str) else text)


def restart_server(path: Path, text: str) -> None:
    """As llama-server opens its --log-file: truncating, at the same inode."""
    with path.open("w") as file:
        file.write(text)


# Growth, starts and stops


def test_new_lines_are_stored_with_the_time_of_their_reading(log: Path, open_collector: Open) -> None:
    log.touch()
    before = int(time.time()) - 1  # a line is written before it is read
    with open_collector() as collector:
        collector.poll()
        for number in range(1, 4):
            append(log, line(number))
            assert collector.poll() == OK
        assert collector.messages() == numbered(1, 3)
        assert all(before <= row["timestamp"] <= time.time() for row in collector.rows())
        assert {(row["level"], row["source"]) for row in collector.rows()} == {("info", "llama-server")}


def test_each_line_is_stored_once_across_restarts_of_the_collector(log: Path, open_collector: Open) -> None:
    for first in (1, 4, 7):
        append(log, lines(first, first + 2))
        with open_collector() as collector:
            collector.poll()
            collector.poll()
            assert collector.messages() == numbered(1, first + 2)


def test_what_was_not_committed_is_read_again(log: Path, open_collector: Open) -> None:
    append(log, lines(1, 3))
    with open_collector() as collector:
        collector.reader.poll()  # and no flush: a crash
    with open_collector() as collector:
        collector.poll()
        assert collector.messages() == numbered(1, 3)


def test_a_file_of_many_chunks_is_read_completely(log: Path, open_collector: Open) -> None:
    append(log, lines(1, 60_000))
    assert log.stat().st_size > 8 * tail.CHUNK_BYTES
    with open_collector() as collector:
        collector.poll()
        assert collector.messages() == numbered(1, 60_000)


def test_a_file_that_appears_late_is_absent_and_then_read(log: Path, open_collector: Open) -> None:
    with open_collector() as collector:
        with pytest.raises(SourceAbsent, match="no log file yet"):
            collector.poll()
        append(log, lines(1, 2))
        assert collector.poll() == OK
        assert collector.messages() == numbered(1, 2)


def test_a_file_that_cannot_be_read_for_a_while_is_then_read_from_its_position(
    log: Path, open_collector: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(log, lines(1, 2))
    with open_collector() as collector:
        collector.poll()
    append(log, lines(3, 4))
    with open_collector() as collector:
        refused = PermissionError(13, "Permission denied", str(log))

        def refuse(_path: Path) -> int:  # root, who runs tests, may read everything
            raise refused

        with monkeypatch.context() as context:
            context.setattr(tail, "open_regular_file", refuse)
            with pytest.raises(SourceFailed, match="cannot be read: let the user"):
                collector.poll()
        collector.poll()
        assert collector.messages() == numbered(1, 4)


def test_the_position_of_a_missing_file_is_kept_because_its_file_system_may_be_mounted_later(
    log: Path, open_collector: Open
) -> None:
    append(log, lines(1, 2))
    with open_collector() as collector:
        collector.poll()
    away = log.rename(log.parent / "elsewhere")
    with open_collector() as collector:
        with pytest.raises(SourceAbsent):
            collector.poll()
        away.rename(log)
        append(log, lines(3, 3))
        collector.poll()
        assert collector.messages() == numbered(1, 3)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_not_a_regular_file_is_reported_and_does_not_block(
    log: Path, open_collector: Open, make: Callable[[Path], None]
) -> None:
    make(log)
    with open_collector() as collector, pytest.raises(SourceFailed, match="not a regular file"):
        collector.poll()


# Rotation by rename


def test_after_a_rename_the_old_file_is_followed_as_long_as_it_grows(log: Path, open_collector: Open) -> None:
    append(log, lines(1, 2))
    with open_collector() as collector:
        collector.poll()
        old = log.rename(f"{log}.1")
        append(old, lines(3, 4))
        append(log, lines(11, 12))
        collector.poll()
        append(old, lines(5, 5))
        collector.poll()
        assert collector.messages() == [*numbered(1, 4), *numbered(11, 12), *numbered(5, 5)]


def test_a_rename_while_the_collector_is_down_loses_nothing(log: Path, open_collector: Open) -> None:
    append(log, lines(1, 2))
    with open_collector() as collector:
        collector.poll()
    append(log, lines(3, 4))
    log.rename(f"{log}.1")
    append(log, lines(5, 6))
    with open_collector() as collector:
        collector.poll()
        assert collector.messages() == numbered(1, 6)


@pytest.mark.parametrize("names", [(".3", ".2", ".1"), ("-20260101", "-20260102", "-20260103")])
@pytest.mark.parametrize("down", [True, False])
def test_several_rotations_between_two_polls_are_read_in_their_order(
    log: Path, open_collector: Open, names: tuple[str, ...], *, down: bool
) -> None:
    append(log, lines(1, 2))
    collector = open_collector()
    collector.poll()
    if down:
        collector.__exit__(None, None, None)
    for number, name in enumerate(names):
        append(log, line(3 + number))
        log.rename(f"{log}{name}")
    append(log, line(6))
    with open_collector() if down else collector as collector:
        collector.poll()
        assert collector.messages() == numbered(1, 6)


def test_files_that_were_rotated_before_the_first_poll_are_not_read(log: Path, open_collector: Open) -> None:
    append(log.with_name("llama.log.1"), lines(1, 2))
    append(log, lines(3, 4))
    os.utime(f"{log}.1", (1, 1))
    with open_collector() as collector:
        collector.poll()
        assert collector.messages() == numbered(3, 4)


def test_a_file_of_another_program_beside_the_log_is_never_read(log: Path, open_collector: Open) -> None:
    append(log, lines(1, 2))
    with open_collector() as collector:
        collector.poll()
    log.rename(f"{log}.1")
    append(log, lines(3, 4))
    append(log.with_name("llama.log.notes"), "other program\n")
    append(log.with_name("llama.log2"), "other server\n")
    with open_collector() as collector:
        collector.poll()
        assert collector.messages() == numbered(1, 4)


def test_two_runs_with_the_same_content_are_both_stored(log: Path, open_collector: Open) -> None:
    append(log, "srv  test: same\n" * 3)
    with open_collector() as collector:
        collector.poll()
        log.rename(f"{log}.1")
        append(log, "srv  test: same\n" * 3)
        collector.poll()
    log.rename(f"{log}.2")
    append(log, "srv  test: same\n" * 3)
    with open_collector() as collector:
        collector.poll()
        collector.poll()
        assert len(collector.messages()) == 9


def test_two_files_with_the_same_content_are_both_read(tmp_path: Path, open_collector: Open) -> None:
    for name in ("a.log", "b.log"):
        append(tmp_path / name, lines(1, 3))
    with open_collector(tmp_path / "*.log") as collector:
        collector.poll()
        assert sorted(collector.messages()) == sorted(numbered(1, 3) * 2)


# Truncation


@pytest.mark.parametrize("down", [True, False])
@pytest.mark.parametrize("last", [11, 12, 13, 40])
def test_a_restart_that_truncates_is_read_from_its_beginning(
    log: Path, open_collector: Open, last: int, *, down: bool
) -> None:
    append(log, lines(1, 3))
    collector = open_collector()
    collector.poll()
    if down:
        collector.__exit__(None, None, None)
    restart_server(log, lines(11, last))  # shorter, as long, longer
    with open_collector() if down else collector as collector:
        collector.poll()
        collector.poll()
        assert collector.messages() == [*numbered(1, 3), *numbered(11, last)]


def test_a_file_of_the_same_size_with_other_content_is_read_again(log: Path, open_collector: Open) -> None:
    append(log, lines(1, 3))
    with open_collector() as collector:
        collector.poll()
        collector.poll()
        time.sleep(0.02)  # a file system counts time in steps of some milliseconds
        restart_server(log, lines(4, 6))
        collector.poll_until(lambda: collector.messages() == numbered(1, 6))


def test_a_truncated_file_that_stays_empty_is_restarted_once(
    log: Path, open_collector: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(log, lines(1, 3))
    with open_collector() as collector:
        collector.poll()
        time.sleep(0.02)  # a file system counts time in steps of some milliseconds
        os.truncate(log, 0)
        collector.poll()
        monkeypatch.setattr(rewrite, "SUSPICION_SECONDS", 0.0)
        for _ in range(4):
            collector.reader.poll()
        assert collector.buffer.waiting == 0
        append(log, line(4))
        collector.poll()
        assert collector.messages() == numbered(1, 4)


def test_a_changed_modification_time_alone_adds_no_line(log: Path, open_collector: Open) -> None:
    append(log, lines(1, 3))
    with open_collector() as collector:
        collector.poll()
        os.utime(log, (1_700_000_000, 1_700_000_000))
        for _ in range(4):
            collector.poll()
    with open_collector() as collector:
        collector.poll()
        assert collector.messages() == numbered(1, 3)


@pytest.mark.parametrize("down", [True, False])
@pytest.mark.parametrize("rotations", [1, 2, 3])
def test_the_rest_before_a_copytruncate_is_read_from_the_copies(
    log: Path, open_collector: Open, rotations: int, *, down: bool
) -> None:
    append(log, lines(1, 2))
    collector = open_collector()
    collector.poll()
    if down:
        collector.__exit__(None, None, None)
    for rotation in range(rotations):
        for number in range(rotation, 0, -1):
            Path(f"{log}.{number}").rename(f"{log}.{number + 1}")
        append(log, line(3 + rotation))
        shutil.copyfile(log, f"{log}.1")
        os.truncate(log, 0)
    append(log, line(3 + rotations))
    with open_collector() if down else collector as collector:
        collector.poll()
        collector.poll()
        assert collector.messages() == numbered(1, 3 + rotations)


def test_a_hole_of_nul_bytes_after_a_truncation_is_skipped(log: Path, open_collector: Open) -> None:
    with log.open("wb", buffering=0) as server, open_collector() as collector:
        server.write(lines(1, 200).encode())
        collector.poll()
        os.truncate(log, 0)  # by another program: the server continues to write at its old offset
        server.write(lines(201, 202).encode())
        collector.poll()
        assert collector.messages() == numbered(1, 202)


def test_a_hole_of_many_gigabytes_is_skipped_in_one_poll(log: Path, open_collector: Open) -> None:
    log.touch()
    os.truncate(log, 50 * 2**30)
    append(log, lines(1, 2))
    with open_collector() as collector:
        collector.reader.poll()
        collector.poll()
        assert collector.messages() == numbered(1, 2)


@pytest.mark.parametrize("down", [True, False])
def test_a_file_that_replaces_a_deleted_one_is_read_from_its_beginning(
    log: Path, open_collector: Open, *, down: bool
) -> None:
    append(log, lines(1, 3))
    collector = open_collector()
    collector.poll()
    if down:
        collector.__exit__(None, None, None)
    else:
        append(log, line(4))  # not yet seen when the file is deleted
    log.unlink()
    append(log, lines(5, 9))  # ext4 gives it the same inode where the old one was free
    with open_collector() if down else collector as collector:
        collector.poll()
        assert collector.messages() == [*numbered(1, 3 if down else 4), *numbered(5, 9)]


def test_a_reused_inode_is_not_mistaken_for_the_old_file(log: Path, open_collector: Open) -> None:
    append(log, lines(1, 3))
    with open_collector() as collector:
        collector.poll()
        with collector.database.transaction() as connection:  # on every file system
            log.unlink()
            append(log, lines(11, 19))
            connection.execute(
                "UPDATE log_positions SET position = json_set(position, '$.files[0].inode', ?)",
                (log.stat().st_ino,),
            )
    with open_collector() as collector, capture_logs() as events:
        collector.poll()
        collector.poll()
        assert collector.messages() == [*numbered(1, 3), *numbered(11, 19)]
    assert [event["log_level"] for event in events] == ["warning"]


def test_a_file_that_was_replaced_by_its_copy_is_read_from_its_position(
    log: Path, open_collector: Open
) -> None:
    append(log, lines(1, 3))
    with open_collector() as collector:
        collector.poll()
    shutil.copyfile(log, f"{log}.new")
    Path(f"{log}.new").rename(log)
    append(log, lines(4, 4))
    with open_collector() as collector:
        collector.poll()
        assert collector.messages() == numbered(1, 4)


# Patterns and names


def test_rotated_files_that_a_pattern_also_matches_are_not_read_twice(
    tmp_path: Path, open_collector: Open
) -> None:
    log = tmp_path / "llama.log"
    append(log, lines(1, 2))
    with open_collector(tmp_path / "llama.log*") as collector:
        collector.poll()
        log.rename(f"{log}.1")
        for _ in range(2 * files.SEARCH_POLLS):
            with pytest.raises(SourceAbsent):
                collector.poll()
        append(log, lines(3, 4))
        for _ in range(2 * files.SEARCH_POLLS):
            collector.poll()
    log.rename(f"{log}.2")
    with open_collector(tmp_path / "llama.log*") as collector:
        with pytest.raises(SourceAbsent):
            collector.poll()
        append(log, lines(5, 6))
        collector.poll()
        assert collector.messages() == numbered(1, 6)


def test_a_file_that_a_pattern_matches_later_is_found(tmp_path: Path, open_collector: Open) -> None:
    with open_collector(tmp_path / "run-*.log") as collector:
        with pytest.raises(SourceAbsent):
            collector.poll()
        append(tmp_path / "run-7.log", lines(1, 2))
        for _ in range(files.SEARCH_POLLS - 1):
            with pytest.raises(SourceAbsent):
                collector.poll()
        assert collector.poll() == OK
        assert collector.messages() == numbered(1, 2)


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_file_with_two_names_is_read_once(
    tmp_path: Path, open_collector: Open, link: Callable[[Path, Path], None]
) -> None:
    append(tmp_path / "a.log", lines(1, 3))
    link(tmp_path / "a.log", tmp_path / "b.log")
    with open_collector(tmp_path / "*.log") as collector:
        collector.poll()
        assert collector.messages() == numbered(1, 3)


def test_a_file_that_got_another_matching_name_while_down_is_not_read_again(
    tmp_path: Path, open_collector: Open
) -> None:
    append(tmp_path / "a.log", lines(1, 3))
    with open_collector(tmp_path / "*.log") as collector:
        collector.poll()
    (tmp_path / "a.log").rename(tmp_path / "z.log")
    append(tmp_path / "z.log", lines(4, 4))
    with open_collector(tmp_path / "*.log") as collector:
        collector.poll()
        assert collector.messages() == numbered(1, 4)


def test_the_home_directory_and_names_with_wildcard_characters_are_resolved(
    tmp_path: Path, open_collector: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    append(tmp_path / "llama [1].log", lines(1, 3))
    with open_collector("~/llama [1].log") as collector:
        collector.poll()
        assert collector.messages() == numbered(1, 3)


def test_one_unreadable_file_does_not_stop_the_others(tmp_path: Path, open_collector: Open) -> None:
    (tmp_path / "a.log").mkdir()
    append(tmp_path / "b.log", lines(1, 3))
    with open_collector(tmp_path / "a.log", tmp_path / "b.log") as collector:
        with pytest.raises(SourceFailed):
            collector.poll()
        assert collector.messages() == numbered(1, 3)


def test_one_missing_file_is_named_while_the_others_are_read(tmp_path: Path, open_collector: Open) -> None:
    append(tmp_path / "b.log", lines(1, 3))
    with open_collector(tmp_path / "a.log", tmp_path / "b.log") as collector:
        assert "a.log" in collector.poll().message


# Lines


def test_an_unfinished_line_waits_and_is_then_stored_once(
    log: Path, open_collector: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(log, line(1) + "0.02.000.000 I srv  test: li")
    with open_collector() as collector:
        collector.poll()
        assert collector.messages() == numbered(1, 1)
        append(log, "ne 2\n" + "0.03.000.000 I srv  test: stays unfinished, ü"[:-1] + "\xfc")
        collector.poll()
        assert collector.messages() == numbered(1, 2)
        monkeypatch.setattr(tail, "UNFINISHED_SECONDS", 0.0)
        collector.poll()
        append(log, " more\n" + line(4))
        collector.poll()
    with open_collector() as collector:
        collector.poll()
        expected = [*numbered(1, 2), "srv  test: stays unfinished, ü", " more", *numbered(4, 4)]
        assert collector.messages() == expected


@pytest.mark.parametrize(
    ("data", "whole"),
    [
        (b"ab", 2),
        (b"a\xf0", 1),
        (b"a\xf0\x9f\xa6", 1),
        (b"a\xf0\x9f\xa6\x99", 5),
        (b"a\xc3", 1),
        (b"a\xc3\xbc", 3),
        (b"a\xff", 1),
        (b"\xf0\x9f", 2),  # nothing precedes it: it is stored as it is
        (b"a\x80\x80\x80\x80\x80", 6),
    ],
)
def test_an_unfinished_line_is_never_cut_inside_a_character(data: bytes, whole: int) -> None:
    assert chunk.size_of_whole_characters(data) == whole


def test_the_newest_record_waits_a_moment_for_its_other_lines(
    log: Path, open_collector: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(log, line(1) + "0.02.000.000 I srv  test: a\n")
    with open_collector() as collector:
        monkeypatch.setattr(tail, "SETTLE_SECONDS", 60.0)
        collector.poll()
        assert collector.messages() == numbered(1, 1)
        append(log, "b\n")
        collector.poll()
        assert collector.messages() == numbered(1, 1)
        monkeypatch.setattr(tail, "SETTLE_SECONDS", 0.2)
        collector.poll_until(lambda: len(collector.rows()) > 1)
        assert collector.messages() == [*numbered(1, 1), "srv  test: a\nb"]


def test_a_record_on_the_edge_of_two_chunks_stays_together(log: Path, open_collector: Open) -> None:
    filler = "srv  test: " + "x" * 988 + "\n"
    count = tail.CHUNK_BYTES // len(filler)
    record = "0.02.000.000 I srv  test: a\n" + "".join(f"  part {n}\n" for n in range(200))
    append(log, filler * count + record + line(3))
    with open_collector() as collector:
        collector.poll()
        assert len(collector.messages()) == count + 2
        assert collector.messages()[-2].count("\n") == 200


def test_a_line_of_100_mb_is_cut_and_marked_and_its_neighbours_are_whole(
    log: Path, open_collector: Open
) -> None:
    append(log, line(1))
    with log.open("ab") as file:
        file.write(b"x" * 2**20)
        file.truncate(100 * 2**20)  # NUL bytes, which need no space on the disk
        file.write(b"\n" + line(2).encode())
    with open_collector() as collector:
        collector.reader.poll()
        collector.writer.flush()  # in the middle of the long line: a crash
    with open_collector() as collector:
        collector.poll()
        first, cut, second = collector.messages()
        assert [first, second] == numbered(1, 2)
        assert cut == "x" * MAX_LINE_BYTES + CUT_MARK


def test_empty_lines_nul_bytes_and_invalid_text_never_stop_the_reading(
    log: Path, open_collector: Open
) -> None:
    append(
        log,
        b"\n\n \n\0\0\0\n" + line(1).encode() + b"\xff\xfe caf\xe9\x07\n" + b"\0" * 500 + line(2).encode(),
    )
    with open_collector() as collector:
        collector.poll()
        assert collector.messages() == [
            "srv  test: line 1\n\ufffd\ufffd caf\ufffd",
            "srv  test: line 2",
        ]


def test_lines_below_the_minimum_level_are_not_stored_and_not_read_again(
    log: Path, open_collector: Open
) -> None:
    for letter in "DIWE":
        append(log, f"0.00.001.000 {letter} srv  test: {letter}\n")
    with open_collector(minimum_level="warn") as collector:
        collector.poll()
    with open_collector() as collector:
        collector.poll()
        assert collector.messages() == ["srv  test: W", "srv  test: E"]


@pytest.mark.parametrize("split", range(0, 7579, 997))
def test_lines_of_a_routers_children_have_their_models_names_wherever_the_collector_was_restarted(
    log: Path, open_collector: Open, split: int
) -> None:
    recording = (RECORDINGS / "router.log").read_bytes()
    append(log, recording[:split])
    with open_collector() as collector:
        collector.poll()
    append(log, recording[split:])
    with open_collector() as collector:
        collector.poll()
        sources = [row["source"] for row in collector.rows()]
        assert {name: sources.count(name) for name in set(sources)} == {
            "llama-server": 62,
            "gemma-b": 21,
            "broken": 15,
        }


def test_a_key_on_the_line_after_its_flag_is_masked_wherever_the_collector_was_restarted(
    log: Path, open_collector: Open
) -> None:
    log.touch()
    for argument in ("--api-key", "SECRET", "--port"):
        append(log, f"0.00.001.000 I srv          load:   {argument}\n")
        with open_collector() as collector:
            collector.poll()
    with open_collector() as collector:
        assert [message.split()[-1] for message in collector.messages()] == ["--api-key", "***", "--port"]


# Time


def test_times_of_a_backlog_are_computed_from_its_stamps_and_the_time_of_the_file(
    log: Path, open_collector: Open
) -> None:
    append(log, lines(1, 600))
    os.utime(log, (1_790_000_600, 1_790_000_600))
    with open_collector() as collector:
        collector.poll()
        assert [row["timestamp"] for row in collector.rows()] == list(range(1_790_000_001, 1_790_000_601))


def test_each_run_in_one_file_ends_where_the_next_begins(log: Path, open_collector: Open) -> None:
    append(log, "srv  test: no stamp\n" + lines(1, 100) + lines(1, 50) + "srv  test: no stamp\n")
    os.utime(log, (1_790_000_150, 1_790_000_150))
    with open_collector() as collector:
        collector.poll()
        times = [row["timestamp"] - 1_790_000_000 for row in collector.rows()]
        assert times == [0, *range(1, 101), *range(101, 151), 150]


def test_times_of_a_backlog_are_computed_from_the_start_of_a_known_process(
    log: Path, open_collector: Open
) -> None:
    log.touch()
    with open_collector() as collector:
        collector.poll()
        append(log, line(1000))
        collector.poll()
        with collector.database.transaction() as connection:  # as if it had run 500 seconds ago
            connection.execute(
                "UPDATE log_positions SET position = json_set(position, '$.files[0].clock.0[0]', ?)",
                (time.time() - 1500,),
            )
    append(log, lines(1001, 1003))  # and another program touches the file later: the stamps are more exact
    with open_collector() as collector:
        collector.poll()
        ages = [time.time() - row["timestamp"] for row in collector.rows()[1:]]
        assert ages == pytest.approx([499, 498, 497], abs=20), "by the file's time they would be new"


def test_times_of_a_routers_children_in_a_backlog_are_correct(log: Path, open_collector: Open) -> None:
    append(log, (RECORDINGS / "router.log").read_bytes())
    end = 1_790_000_000.0
    os.utime(log, (end, end))
    with open_collector() as collector:
        collector.poll()
        times = {row["message"]: row["timestamp"] for row in collector.rows()}
    start = end - 16.528
    loaded = "srv  llama_server: listening on http://127.0.0.1:40463"
    sleeping = "srv  handle_sleep: server is entering sleeping state"
    assert times[loaded] == pytest.approx(start + 2.055 + 0.989, abs=2)
    assert times[sleeping] == pytest.approx(start + 2.055 + 10.230, abs=2)


def test_a_backlog_without_stamps_has_the_time_of_the_file(log: Path, open_collector: Open) -> None:
    append(log, (RECORDINGS / "single-plain.log").read_bytes())
    os.utime(log, (1_790_000_000, 1_790_000_000))
    with open_collector() as collector:
        collector.poll()
        assert {row["timestamp"] for row in collector.rows()} == {1_790_000_000}


def test_no_line_of_a_file_that_was_changed_in_the_future_is_of_the_future(
    log: Path, open_collector: Open
) -> None:
    append(log, lines(1, 10))
    os.utime(log, (4_000_000_000, 4_000_000_000))
    with open_collector() as collector:
        collector.poll()
        assert max(row["timestamp"] for row in collector.rows()) <= time.time()


# Bounds


def test_reading_stops_while_the_buffer_is_full_and_loses_no_line(log: Path, open_collector: Open) -> None:
    append(log, lines(1, 5000))
    buffer = Buffer(line_capacity=300)
    with open_collector(buffer=buffer) as collector:
        for _ in range(3):
            collector.reader.poll()
            assert 0 < buffer.waiting <= 302
            assert collector.reader.has_more
        collector.poll()
        assert collector.messages() == numbered(1, 5000)


def test_the_size_of_long_lines_limits_how_many_the_buffer_accepts(log: Path, open_collector: Open) -> None:
    append(log, ("srv  test: " + "x" * 60_000 + "\n") * 400)
    buffer = Buffer()
    with open_collector(buffer=buffer) as collector:
        for _ in range(30):
            collector.reader.poll()
        assert buffer.waiting < 120
        collector.poll()
        assert len(collector.rows()) == 400


def test_only_a_few_renamed_files_stay_open(log: Path, open_collector: Open) -> None:
    with open_collector() as collector:
        for number in range(30):
            append(log, line(number))
            collector.poll()
            log.rename(f"{log}-202601{number:02}")
        open_files = len(list(Path("/proc/self/fd").iterdir()))
        assert collector.messages() == numbered(0, 29)
    assert open_files - len(list(Path("/proc/self/fd").iterdir())) <= follower.MAX_TAILS + 2


def test_a_deleted_file_is_closed_after_a_while(
    log: Path, open_collector: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(log, line(1))
    with open_collector() as collector:
        collector.poll()
        log.unlink()
        append(log, line(2))
        collector.poll()
        assert deleted_but_open(log) == 1
        monkeypatch.setattr(tail, "DELETED_SECONDS", -1)
        collector.poll()
        assert deleted_but_open(log) == 0


def deleted_but_open(log: Path) -> int:
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the descriptor of the listing itself
            count += str(descriptor.readlink()) == f"{log} (deleted)"
    return count


def test_a_file_that_several_servers_truncate_is_reported_once(log: Path, open_collector: Open) -> None:
    idle = [
        sys.executable,
        "-c",
        "import sys; print(); sys.stdout.flush(); sys.stdin.read()",
        "--log-file",
        str(log),
    ]
    append(log, lines(1, 3))
    with open_collector() as collector, capture_logs() as events:
        collector.poll()
        servers = [subprocess.Popen(idle, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
        try:
            for server in servers:
                assert server.stdout
                server.stdout.readline()
            for first in (11, 21):
                restart_server(log, line(first))
                collector.poll()
        finally:
            for server in servers:
                server.communicate()
    assert [event["event"].split(" is ")[1][:18] for event in events] == ["written by several"]
