import sqlite3
from collections import namedtuple
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.database import Database
from collector.database import deletion as retention
from collector.database.deletion import (
    CHUNK_ROWS,
    Boundary,
    count_rows,
    delete_chunk,
    delete_oldest,
    find_boundary,
    max_row_count,
    read_space,
    release_pages,
    rewrite,
)
from collector.database.documented import LOGS
from collector.errors import DatabaseError
from collector.schema import SqlValue


def add_lines(database: Database, timestamps: list[SqlValue], text: str = "x") -> None:
    with database.transaction() as connection:
        connection.executemany(
            "INSERT INTO logs (level, message, source, timestamp) VALUES ('info', ?, 's', ?)",
            [(text, timestamp) for timestamp in timestamps],
        )


def kept(database: Database) -> list[int]:
    return [row["id"] for row in database.query("SELECT id FROM logs ORDER BY timestamp, id")]


def age(timestamp: SqlValue) -> tuple[int, str]:
    """As SQLite sorts: NULL, numbers, texts."""
    if timestamp is None:
        return 0, ""
    return (1, f"{timestamp:09}") if isinstance(timestamp, int) else (2, str(timestamp))


TIMES = st.one_of(st.none(), st.integers(0, 5), st.just("yesterday"))


@given(timestamps=st.lists(TIMES, max_size=40), max_rows=st.integers(0, 20), chunk=st.integers(1, 7))
def test_the_oldest_rows_by_time_then_id_go_and_no_other(
    database: Database, timestamps: list[SqlValue], max_rows: int, chunk: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retention, "CHUNK_ROWS", chunk)
        patch.setattr(retention, "PASS_ROWS", 2 * chunk)
        patch.setattr(retention, "COUNT_ROWS", chunk)
        database.run_script("DELETE FROM logs; DELETE FROM sqlite_sequence")
        add_lines(database, timestamps)
        deleted = delete_oldest(database, "logs", max_rows)
    order = sorted(range(1, len(timestamps) + 1), key=lambda id_: (age(timestamps[id_ - 1]), id_))
    expected = order[max(0, len(order) - max_rows) :]
    assert (kept(database), deleted) == (expected, len(order) - len(expected))


@given(timestamps=st.lists(TIMES, max_size=40), gone=st.sets(st.integers(1, 40)), some=st.integers(1, 7))
def test_a_count_in_steps_is_that_of_all_rows(
    database: Database, timestamps: list[SqlValue], gone: set[int], some: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retention, "COUNT_ROWS", some)
        database.run_script("DELETE FROM logs; DELETE FROM sqlite_sequence")
        add_lines(database, timestamps)
        database.run_script(f"DELETE FROM logs WHERE id IN ({', '.join(map(str, gone))})")
        rows = count_rows(database, "logs")
    assert rows == len(kept(database))
    assert max_row_count(database, "logs") >= rows


def test_rows_that_came_evenly_are_counted_in_even_steps(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "COUNT_ROWS", 100)
    add_lines(database, list(range(5000, 6000)))
    steps: list[int] = []

    def noted(step: Callable[[], int]) -> int:
        steps.append(step())
        return steps[-1]

    assert count_rows(database, "logs", noted) == 1000
    assert max(steps) <= 100


def test_there_is_no_boundary_behind_more_rows_than_there_are(database: Database) -> None:
    add_lines(database, [1, 2, 3])
    assert find_boundary(database, "logs", 4) is None


def test_a_chunk_is_bounded_by_a_count_where_all_rows_are_of_one_second(database: Database) -> None:
    add_lines(database, [7] * (2 * CHUNK_ROWS + 5))
    boundary = find_boundary(database, "logs", 2 * CHUNK_ROWS)
    assert boundary
    chunks = [delete_chunk(database, "logs", boundary) for _ in range(3)]
    assert chunks == [CHUNK_ROWS, CHUNK_ROWS, 0]
    assert kept(database) == list(range(2 * CHUNK_ROWS + 1, 2 * CHUNK_ROWS + 6))


def test_an_age_is_a_boundary_before_all_rows_of_its_second(database: Database) -> None:
    add_lines(database, [5, 4, None, 5, 3])
    assert delete_chunk(database, "logs", Boundary(5)) == 3
    assert kept(database) == [1, 4]


@pytest.mark.parametrize("older", retention._OLDER)
def test_no_chunk_reads_or_sorts_the_whole_table(database: Database, older: str) -> None:
    statement = f"EXPLAIN QUERY PLAN SELECT id FROM logs WHERE {older} LIMIT :rows"
    with database.transaction() as connection:
        plan = [row[3] for row in connection.execute(statement, {"timestamp": 1, "id": 1, "rows": 1})]
    assert "idx_logs_timestamp" in plan[0]
    assert not [line for line in plan if "TEMP B-TREE" in line]


def test_a_new_file_gives_its_free_pages_back_in_steps(database: Database) -> None:
    add_lines(database, [1] * 5000, text="x" * 1000)
    delete_oldest(database, "logs", 0)
    before = read_space(database)
    assert before.can_shrink
    release_pages(database)
    after = read_space(database)
    assert before.free_bytes - after.free_bytes == retention.RELEASE_PAGES * before.page_bytes
    assert after.size_bytes == database.path.stat().st_size < before.size_bytes


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A database that another program created: it cannot give pages back."""
    path = tmp_path / "foreign.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(LOGS.create_statement)
        connection.executemany(
            LOGS.insert_statement, [("info", "x" * 1000, "theirs", number) for number in range(5000)]
        )
        connection.commit()
    return path


def test_a_file_that_another_program_created_can_shrink_once_it_is_rewritten(foreign: Path) -> None:
    with Database(foreign) as database:
        assert not read_space(database).can_shrink
        delete_oldest(database, "logs", 100)
        size_bytes = read_space(database).size_bytes
        rewrite(database)
        space = read_space(database)
        assert space.can_shrink
        assert space.free_bytes == 0
        assert space.size_bytes < size_bytes / 10
        assert count_rows(database, "logs") == 100
        assert database.query("PRAGMA temp_store") == [{"temp_store": 2}]


def test_a_rewrite_for_which_the_disk_is_too_small_is_not_begun(
    foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Usage = namedtuple("Usage", "free")  # noqa: PYI024
    monkeypatch.setattr("shutil.disk_usage", lambda _path: Usage(20 * 2**20))
    with Database(foreign) as database:
        with pytest.raises(DatabaseError, match=r"20 MB free.*needs 30 MB"):
            rewrite(database)
        assert not read_space(database).can_shrink
