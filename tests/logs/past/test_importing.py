"""Requests out of whole files: all of them, each once, whatever is imported again and in which form."""

import gzip
import lzma
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from collector.catalog import open_database
from collector.database import Database
from collector.errors import SourceFailed
from collector.logs.files import LogFileReader
from collector.logs.past.duplicates import RequestDuplicates
from collector.logs.past.importing import RequestImport
from collector.logs.past.merging import MergeSummary
from tests.support.log_reading import file_collector
from tests.support.paths import RECORDINGS

FOLDER = RECORDINGS / "requests"
SERVERS = sorted(path.name for path in FOLDER.iterdir())
STAMPED = ("b10229", "b11434-default", "b11434-embeddings", "b11434-jsonl", "b11434-router", "b9294")
MODIFIED_AT = 1_790_000_000.0
ALL = "SELECT * FROM requests ORDER BY id"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with open_database(tmp_path / "d.db") as database:
        yield database


def log_of(server: str, directory: Path, modified_at: float = MODIFIED_AT) -> Path:
    path = directory / f"{server}.log"
    shutil.copyfile(FOLDER / server / "server.log", path)
    os.utime(path, (modified_at, modified_at))
    return path


def add(database: Database, path: Path, oldest: float = 0, ended: tuple[float, ...] = ()) -> MergeSummary:
    return RequestImport(database, oldest, time.time()).add_file(path, ended)


def embedding(task: int, stamp_seconds: int, tokens: int = 12) -> str:
    """Return the lines of a request without durations."""
    stamps = [f"{at // 60}.{at % 60:02}.000.000" for at in (stamp_seconds, stamp_seconds + 1)]
    head = f"id  0 | task {task} |"
    return (
        f"{stamps[0]} I slot launch_slot_: {head} processing task, is_child = 0\n"
        f"{stamps[1]} I slot      release: {head} stop processing: n_tokens = {tokens}, truncated = 0\n"
    )


def write(path: Path, text: str, modified_at: float = MODIFIED_AT) -> Path:
    path.write_text(text)
    os.utime(path, (modified_at, modified_at))
    return path


def requests_of(server: str, directory: Path) -> list[dict[str, Any]]:
    """Return the rows that the reader of files makes of a recording."""
    path = log_of(server, directory, time.time() - 3600)
    with file_collector(directory / f"{server}.db", path) as collector:
        collector.poll()
        return collector.database.query(ALL)


COMPARED = ("slot", "task", "parent_task", "outcome", "prompt_tokens", "cached_tokens", "generated_tokens", "total_ms", "other_requests", "model", "error")  # fmt: skip


@pytest.mark.parametrize("server", SERVERS)
def test_a_file_has_the_requests_that_its_reader_found_and_a_second_import_adds_none(
    server: str, database: Database, tmp_path: Path
) -> None:
    read = requests_of(server, tmp_path)
    path = log_of(server, tmp_path)
    assert add(database, path).added == len(read) > 0
    imported = database.query(ALL)
    assert [[row[name] for name in COMPARED] for row in imported] == [
        [row[name] for name in COMPARED] for row in read
    ]
    assert {row["origin"] for row in imported} == {"import"}
    os.utime(path, (MODIFIED_AT - 1e6, MODIFIED_AT - 1e6))
    assert add(database, path) == MergeSummary(known=len(read))
    assert database.query(ALL) == imported


@pytest.mark.parametrize("server", STAMPED)
def test_the_times_of_the_last_process_count_back_from_the_age_of_the_file(
    server: str, database: Database, tmp_path: Path
) -> None:
    read = requests_of(server, tmp_path)
    add(database, log_of(server, tmp_path))
    imported = database.query(ALL)
    shift = imported[0]["ended_at"] - read[0]["ended_at"]
    for before, row in zip(read, imported, strict=True):
        assert row["ended_at"] - before["ended_at"] == pytest.approx(shift, abs=0.01)
        assert row["time_source"] == "file"
    assert MODIFIED_AT - 60 < imported[-1]["ended_at"] <= MODIFIED_AT


@pytest.mark.parametrize("server", ["b11434-no-timestamps", "b8672", "b5036"])
def test_requests_of_lines_without_stamps_have_no_time(
    server: str, database: Database, tmp_path: Path
) -> None:
    summary = add(database, log_of(server, tmp_path))
    rows = database.query(ALL)
    assert summary.without_time == summary.added == len(rows)
    for row in rows:
        assert (row["started_at"], row["ended_at"], row["queue_ms"]) == (None, None, None)
        assert (row["time_source"], row["timestamp"]) == ("unknown", int(MODIFIED_AT))
    assert not database.query("SELECT * FROM requests_by_hour")


@pytest.mark.parametrize("ending", ["gz", "xz", "zst", "concatenated.gz"])
def test_a_compressed_file_has_the_same_requests(ending: str, database: Database, tmp_path: Path) -> None:
    path = log_of("b10229", tmp_path)
    data = path.read_bytes()
    packed = tmp_path / f"packed.{ending}"
    if ending == "zst":
        if shutil.which("zstd") is None:
            pytest.skip("there is no program zstd on this machine")
        subprocess.run(["zstd", "-q", path, "-o", packed], check=True)
    elif ending == "xz":
        packed.write_bytes(lzma.compress(data))
    elif ending == "gz":
        packed.write_bytes(gzip.compress(data))
    else:
        packed.write_bytes(gzip.compress(data[:20_000]) + gzip.compress(data[20_000:]))
    assert add(database, packed).added == add(database, path).known == 40


def test_a_damaged_or_missing_file_is_an_error_that_names_it(database: Database, tmp_path: Path) -> None:
    path = log_of("b10229", tmp_path)
    packed = gzip.compress(path.read_bytes())
    cut, damaged = tmp_path / "cut.gz", tmp_path / "damaged.gz"
    cut.write_bytes(packed[:-500])
    damaged.write_bytes(packed[:10] + b"\xff" + packed[11:])  # no such kind of block
    for bad in (cut, damaged, tmp_path / "missing.log", tmp_path):
        with pytest.raises(SourceFailed, match=bad.name):
            add(database, bad)


def test_requests_that_were_read_as_they_were_written_are_known_and_give_the_right_times(
    database: Database, tmp_path: Path
) -> None:
    """The file is a copy, as old as the copying; half of its requests are in the table."""
    path = log_of("b10229", tmp_path)
    add(database, path)
    right = database.query(ALL)
    with database.transaction() as connection:
        connection.execute("UPDATE requests SET origin = NULL, time_source = 'arrival'")
        connection.execute("DELETE FROM requests WHERE id % 2")
    os.utime(path, (MODIFIED_AT + 50_000, MODIFIED_AT + 50_000))
    assert add(database, path) == MergeSummary(added=20, known=20)
    found = {row["task"]: row for row in database.query(ALL)}
    for row in right:
        assert found[row["task"]]["ended_at"] == pytest.approx(row["ended_at"], abs=0.01)
    assert {row["time_source"] for row in found.values() if row["origin"]} == {"stamp"}


def test_earlier_processes_have_a_time_only_if_the_user_gives_it(database: Database, tmp_path: Path) -> None:
    text = "".join(embedding(task, 10 * task) for task in range(1, 4))
    path = write(tmp_path / "a.log", embedding(9, 100) + text)
    add(database, path)
    assert [row["ended_at"] for row in database.query(ALL)] == [
        None, MODIFIED_AT - 20, MODIFIED_AT - 10, MODIFIED_AT
    ]  # fmt: skip
    with database.transaction() as connection:
        connection.execute("DELETE FROM requests")
    add(database, path, ended=(MODIFIED_AT - 5000,))
    assert [(row["ended_at"], row["time_source"]) for row in database.query(ALL)][:2] == [
        (MODIFIED_AT - 5000, "given"),
        (MODIFIED_AT - 20, "file"),
    ]
    with pytest.raises(SourceFailed, match="contains 2 processes"):
        add(database, path, ended=(1.0, 2.0, 3.0))


def test_equal_requests_without_durations_of_two_processes_are_two_rows(
    database: Database, tmp_path: Path
) -> None:
    """A server that computes the same embedding first after each start, with a log a day."""
    days = [write(tmp_path / f"{day}.log", embedding(0, 5), MODIFIED_AT + 86_400 * day) for day in range(3)]
    for path in days:
        assert add(database, path) == MergeSummary(added=1)
    for path in days:
        assert add(database, path) == MergeSummary(known=1)


def test_a_request_that_occurs_twice_without_durations_and_times_is_two_rows_and_stays_two(
    database: Database, tmp_path: Path
) -> None:
    lines = [line.partition(" I ")[2] for line in embedding(0, 5).splitlines()]
    path = write(tmp_path / "a.log", "\n".join([*lines, *lines]) + "\n")
    assert add(database, path).added == 2
    assert add(database, path) == MergeSummary(known=2)


def test_requests_beyond_the_retention_are_skipped_each_time(database: Database, tmp_path: Path) -> None:
    text = "".join(embedding(task, 100 * task) for task in range(10))
    path = write(tmp_path / "a.log", text)
    for _ in range(2):
        add(database, path, oldest=MODIFIED_AT - 450)
        assert len(database.query(ALL)) == 5
    assert add(database, path, oldest=MODIFIED_AT - 450) == MergeSummary(known=5, too_old=5)


def test_an_imported_request_yields_to_the_one_that_is_read_from_the_log_later(tmp_path: Path) -> None:
    log = log_of("b11434-default", tmp_path, time.time() - 10)
    path = tmp_path / "e.db"
    with open_database(path) as database:
        add(database, log)
        add(database, log_of("b10229", tmp_path))
        other = len(database.query("SELECT 1 FROM requests")) - 78
    with file_collector(path, log) as collector:
        assert isinstance(collector.reader, LogFileReader)
        collector.poll()
    with open_database(path) as database:
        duplicates = RequestDuplicates(database)
        assert duplicates.run() == 78
        assert duplicates.run() == 0
        left = database.query("SELECT origin, count(*) AS n FROM requests GROUP BY origin ORDER BY origin")
        assert [(row["origin"], row["n"]) for row in left] == [(None, 78), ("import", other)]


def test_a_line_of_many_megabytes_and_bytes_that_are_no_text_cost_nothing_but_themselves(
    database: Database, tmp_path: Path
) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(
        embedding(1, 1).encode()
        + b"x" * 3_000_000
        + b"\n"
        + os.urandom(100_000).replace(b"\n", b"")
        + b"\n"
        + embedding(2, 100).encode().rstrip(b"\n")
    )
    assert add(database, path).added == 2
