from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.database import Database, deletion
from collector.database.deletion import (
    CHUNK_ROWS,
    Boundary,
    count_rows,
    delete_chunk,
    delete_oldest,
    find_boundary,
    max_row_count,
)
from collector.schema import SqlValue


def add_lines(database: Database, timestamps: list[SqlValue], text: str = "x") -> None:
    with database.transaction() as connection:
        connection.executemany(
            "INSERT INTO logs (level, message, source, timestamp) VALUES ('info', ?, 's', ?)",
            [(text, timestamp) for timestamp in timestamps],
        )


def ids(database: Database) -> list[int]:
    return [row["id"] for row in database.query("SELECT id FROM logs ORDER BY timestamp, id")]


def age(timestamp: SqlValue) -> tuple[int, str]:
    """Return a sort key in SQLite's order: NULL, numbers, texts."""
    if timestamp is None:
        return 0, ""
    return (1, f"{timestamp:09}") if isinstance(timestamp, int) else (2, str(timestamp))


TIMES = st.one_of(st.none(), st.integers(0, 5), st.just("yesterday"))


@given(timestamps=st.lists(TIMES, max_size=40), max_rows=st.integers(0, 20), chunk=st.integers(1, 7))
def test_exactly_the_oldest_rows_by_time_then_id_are_deleted(
    database: Database, timestamps: list[SqlValue], max_rows: int, chunk: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deletion, "CHUNK_ROWS", chunk)
        patch.setattr(deletion, "PASS_ROWS", 2 * chunk)
        patch.setattr(deletion, "COUNT_ROWS", chunk)
        database.run_script("DELETE FROM logs; DELETE FROM sqlite_sequence")
        add_lines(database, timestamps)
        deleted = delete_oldest(database, "logs", max_rows)
    order = sorted(range(1, len(timestamps) + 1), key=lambda id_: (age(timestamps[id_ - 1]), id_))
    expected = order[max(0, len(order) - max_rows) :]
    assert (ids(database), deleted) == (expected, len(order) - len(expected))


@given(
    timestamps=st.lists(TIMES, max_size=40),
    deleted_ids=st.sets(st.integers(1, 40)),
    step_rows=st.integers(1, 7),
)
def test_a_count_in_steps_includes_all_rows(
    database: Database, timestamps: list[SqlValue], deleted_ids: set[int], step_rows: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deletion, "COUNT_ROWS", step_rows)
        database.run_script("DELETE FROM logs; DELETE FROM sqlite_sequence")
        add_lines(database, timestamps)
        database.run_script(f"DELETE FROM logs WHERE id IN ({', '.join(map(str, deleted_ids))})")
        rows = count_rows(database, "logs")
    assert rows == len(ids(database))
    assert max_row_count(database, "logs") >= rows


def test_rows_at_regular_times_are_counted_in_steps_of_equal_size(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion, "COUNT_ROWS", 100)
    add_lines(database, list(range(5000, 6000)))
    steps: list[int] = []

    def record(step: Callable[[], int]) -> int:
        steps.append(step())
        return steps[-1]

    assert count_rows(database, "logs", record) == 1000
    assert max(steps) <= 100


def test_there_is_no_boundary_for_more_rows_than_a_table_has(database: Database) -> None:
    add_lines(database, [1, 2, 3])
    assert find_boundary(database, "logs", 4) is None


def test_a_chunk_has_a_maximum_size_although_all_rows_are_of_one_second(database: Database) -> None:
    add_lines(database, [7] * (2 * CHUNK_ROWS + 5))
    boundary = find_boundary(database, "logs", 2 * CHUNK_ROWS)
    assert boundary
    chunks = [delete_chunk(database, "logs", boundary) for _ in range(3)]
    assert chunks == [CHUNK_ROWS, CHUNK_ROWS, 0]
    assert ids(database) == list(range(2 * CHUNK_ROWS + 1, 2 * CHUNK_ROWS + 6))


def test_a_boundary_without_an_id_keeps_all_rows_of_its_second(database: Database) -> None:
    add_lines(database, [5, 4, None, 5, 3])
    assert delete_chunk(database, "logs", Boundary(5)) == 3
    assert ids(database) == [1, 4]


@pytest.mark.parametrize("condition", deletion._CONDITIONS)
def test_no_chunk_reads_or_sorts_the_whole_table(database: Database, condition: str) -> None:
    statement = f"EXPLAIN QUERY PLAN SELECT id FROM logs WHERE {condition} LIMIT :rows"
    with database.transaction() as connection:
        plan = [row[3] for row in connection.execute(statement, {"timestamp": 1, "id": 1, "rows": 1})]
    assert "idx_logs_timestamp" in plan[0]
    assert not [line for line in plan if "TEMP B-TREE" in line]
