"""Count the rows of a table, and delete its oldest rows, in transactions so short that no flush waits.

A row is older than another one if its `timestamp` is smaller or, in the same second, its `id` is. Rows
without a timestamp are the oldest. Other programs can write anything into the documented tables, also NULL or
text as a timestamp.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from collector.database.repositories.base import Connected
from collector.schema import SqlValue

CHUNK_ROWS = 1000
"""Rows deleted in one transaction: 5 to 15 ms, so that no flush waits noticeably."""

PASS_ROWS = 100_000
"""Largest number of rows for which a boundary is searched: with more of them, a flush would wait."""

COUNT_ROWS = 100_000
"""Rows counted in one step, about: 4 ms."""

ANALYSIS_LIMIT = 400
"""Rows of an index that ANALYZE reads: a few milliseconds, however many there are."""

_MIN_ID = -(2**63)
_MIN_TIME: SqlValue = float("-inf")
_MAX_TIME: SqlValue = b"\xff" * 8
"""SQLite sorts NULL before numbers, numbers before texts, and texts before blobs."""

_CONDITIONS = (
    "timestamp IS NULL AND :timestamp IS NOT NULL",
    "timestamp < :timestamp ORDER BY timestamp",
    "timestamp IS :timestamp AND id <= :id",
)
"""The rows up to a boundary in three parts, the oldest first.

SQLite reads each part in the order of an index. With a single condition over `(timestamp, id)` it would have
to sort: if a log wrote 500,000 lines in one second, each chunk would sort all of them, in half a second.
"""


@dataclass(frozen=True, slots=True)
class Boundary:
    """The newest row to delete; all older rows of its table are deleted with it.

    Args:
        timestamp: time of the row; None for a row without a time.
        id: its id. By default it is smaller than every id: then all rows before that time are deleted, and
            none of the time itself.
    """

    timestamp: SqlValue
    id: int = _MIN_ID


CountStep = Callable[[], int]
"""Counts some of a table's rows."""


def max_row_count(database: Connected, table: str) -> int:
    """Return an upper bound of a table's row count without counting the rows.

    It is the span of the ids, so rows that were deleted between others are included.
    """
    return _query_count(
        database,
        f"SELECT (SELECT max(id) FROM {table}) - (SELECT min(id) FROM {table}) + 1 AS n",  # noqa: S608 - our own names
    )


def has_time_index(database: Connected, table: str) -> bool:
    """Return whether `count_rows` can count a table, by its `id` and an index that starts with the time."""
    query = """
        SELECT (SELECT count(*) FROM pragma_table_info(?1) WHERE name = 'id') * (
          SELECT count(*) FROM pragma_index_list(?1) AS one JOIN pragma_index_info(one.name) AS part
          WHERE part.seqno = 0 AND part.name = 'timestamp' AND NOT one.partial) AS n"""
    return _query_count(database, query, (table,)) > 0


def count_rows(
    database: Connected, table: str, run_step: Callable[[CountStep], int] = lambda step: step()
) -> int:
    """Return the number of rows of a table, counted in steps by time: 35 ms per million.

    Args:
        database: contains the table.
        table: its name; it has the columns `timestamp`, with an index, and `id`.
        run_step: runs each step; it can pause after it, so that others can use the connection.
    """
    without_time = f"SELECT count(*) AS n FROM {table} WHERE timestamp IS NULL"  # noqa: S608
    between = f"SELECT count(*) AS n FROM {table} WHERE timestamp > ? AND timestamp <= ?"  # noqa: S608
    total = run_step(partial(_query_count, database, without_time))
    for since, until in pairwise((_MIN_TIME, *_step_times(database, table), _MAX_TIME)):
        total += run_step(partial(_query_count, database, between, (since, until)))
    return total


def _step_times(database: Connected, table: str) -> list[int]:
    """Return times that divide a table into steps of about `COUNT_ROWS` rows, if these are spread evenly.

    Example: 250,000 rows of the seconds 0 to 300 are counted in three steps: up to 100, up to 200, the rest.
    """
    first = oldest_time(database, table)
    newest = f"SELECT max(timestamp) AS newest FROM {table} WHERE timestamp < ''"  # noqa: S608 - no text
    last = database.query(newest)[0]["newest"]
    steps = max_row_count(database, table) // COUNT_ROWS
    if first is None or not isinstance(last, int):
        return []
    return [first + (last - first) * number // (steps + 1) for number in range(1, steps + 1)]


def _query_count(database: Connected, query: str, parameters: Sequence[SqlValue] = ()) -> int:
    """Return the column `n` of a query with one row; 0 if it is NULL."""
    return int(database.query(query, parameters)[0]["n"] or 0)


def oldest_time(database: Connected, table: str) -> int | None:
    """Return the smallest timestamp of a table; None if there is none."""
    timestamp = database.query(f"SELECT min(timestamp) AS oldest FROM {table}")[0]["oldest"]  # noqa: S608
    return timestamp if isinstance(timestamp, int) else None


def find_boundary(database: Connected, table: str, rows: int) -> Boundary | None:
    """Return the boundary up to which a table has this number of rows; None if the table has fewer.

    Example: 1,500 rows are to be deleted. Row 1,500 in the order of time is one of second 70, and 1,200 rows
    are older than that second. The boundary is then the row of second 70 with the 300th smallest id.

    Args:
        database: contains the table.
        table: its name; it has the columns `timestamp` and `id`.
        rows: at least 1.
    """
    last = database.query(
        f"SELECT timestamp FROM {table} ORDER BY timestamp LIMIT 1 OFFSET ?",  # noqa: S608
        (rows - 1,),
    )
    if not last:
        return None
    timestamp = last[0]["timestamp"]
    (older,) = database.query(
        f"SELECT (SELECT count(*) FROM {table} WHERE timestamp < ?1) "  # noqa: S608
        f"+ (SELECT count(*) FROM {table} WHERE timestamp IS NULL AND ?1 IS NOT NULL) AS n",
        (timestamp,),
    )
    (boundary,) = database.query(
        f"SELECT id FROM {table} WHERE timestamp IS ? ORDER BY id LIMIT 1 OFFSET ?",  # noqa: S608
        (timestamp, rows - older["n"] - 1),
    )
    return Boundary(timestamp, boundary["id"])


def delete_chunk(database: Connected, table: str, boundary: Boundary) -> int:
    """Delete up to `CHUNK_ROWS` of the rows up to a boundary, the oldest first, in one transaction.

    Returns:
        How many rows were deleted; 0 if there are no more.

    Raises:
        DatabaseBusy: another program holds a lock; nothing was deleted.
        DatabaseError: disk full, read-only, damaged; nothing was deleted.
    """
    deleted = 0
    with database.transaction() as connection:
        for condition in _CONDITIONS:
            statement = (
                f"DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE {condition} LIMIT :rows)"  # noqa: S608
            )
            values = {"timestamp": boundary.timestamp, "id": boundary.id, "rows": CHUNK_ROWS - deleted}
            deleted += connection.execute(statement, values).rowcount
    return deleted


def delete_oldest(database: Connected, table: str, max_rows: int) -> int:
    """Delete the oldest rows of a table beyond a number of rows, in chunks.

    Returns:
        How many rows were deleted.
    """
    total, excess = 0, count_rows(database, table) - max_rows
    while total < excess and (boundary := find_boundary(database, table, min(excess - total, PASS_ROWS))):
        while deleted := delete_chunk(database, table, boundary):
            total += deleted
    return total


def analyze(database: Connected, table: str) -> None:
    """Update the statistics by which SQLite chooses among a table's indexes."""
    with database.transaction() as connection:
        connection.execute(f"PRAGMA analysis_limit = {ANALYSIS_LIMIT}")
        connection.execute(f"ANALYZE {table}")
