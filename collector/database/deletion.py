"""Deletes the oldest rows of a table in short transactions, and gives free pages back to the file system."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from collector.database.repositories.base import Connected
from collector.errors import DatabaseError
from collector.schema import BYTES_PER_MB, SqlValue

CHUNK_ROWS = 1000
"""Rows deleted in one transaction: 5 to 15 ms, so that no flush waits noticeably."""

PASS_ROWS = 100_000
"""Rows whose boundary is looked for at a time: among more, a flush would wait."""

COUNT_ROWS = 100_000
"""Rows counted at a time, about: 4 ms."""

RELEASE_PAGES = 200
"""Pages given back in one transaction: about 10 ms."""

ANALYSIS_LIMIT = 400
"""Rows of an index that ANALYZE looks at: a few milliseconds, however many there are."""

SPARE_BYTES = 16 * 2**20
"""Left free on the disk beside a rewrite, for what is collected meanwhile."""

_BEFORE_ALL_IDS = -(2**63)
_BEFORE_ALL_TIMES: SqlValue = float("-inf")
_AFTER_ALL_TIMES: SqlValue = b"\xff" * 8

_OLDER = (
    "timestamp IS NULL AND :timestamp IS NOT NULL",
    "timestamp < :timestamp ORDER BY timestamp",
    "timestamp IS :timestamp AND id <= :id",
)
"""The rows up to a boundary, the oldest first. Each uses the index on the time, and none has to sort: the
sort of 500,000 lines of one second would take half a second a chunk."""


@dataclass(frozen=True, slots=True)
class Boundary:
    """Up to which row of a table, this one included, the oldest go.

    Args:
        timestamp: its time; None is before all times.
        id: its id among the rows of that time; all of them stay if it is left out.
    """

    timestamp: SqlValue
    id: int = _BEFORE_ALL_IDS


@dataclass(frozen=True, slots=True)
class Space:
    """How the database file is filled.

    Args:
        size_bytes: of the file.
        free_bytes: in pages that hold nothing.
        page_bytes: of one page.
        can_shrink: whether free pages can be given back without rewriting the file.
    """

    size_bytes: int
    free_bytes: int
    page_bytes: int
    can_shrink: bool

    @property
    def used_bytes(self) -> int:
        """In pages that hold something."""
        return self.size_bytes - self.free_bytes


CountStep = Callable[[], int]


def _at_once(step: CountStep) -> int:
    return step()


def max_row_count(database: Connected, table: str) -> int:
    """A number that a table has no more rows than: it has fewer where some were deleted in its midst."""
    return _number(
        database,
        f"SELECT (SELECT max(id) FROM {table}) - (SELECT min(id) FROM {table}) + 1 AS n",  # noqa: S608 - our own names
    )


def has_time_index(database: Connected, table: str) -> bool:
    """Whether a table can be counted in steps: it has an id, and an index that begins with `timestamp`."""
    query = """
        SELECT (SELECT count(*) FROM pragma_table_info(?1) WHERE name = 'id') * (
          SELECT count(*) FROM pragma_index_list(?1) AS one JOIN pragma_index_info(one.name) AS part
          WHERE part.seqno = 0 AND part.name = 'timestamp' AND NOT one.partial) AS n"""
    return _number(database, query, (table,)) > 0


def count_rows(database: Connected, table: str, step: Callable[[CountStep], int] = _at_once) -> int:
    """How many rows a table has: 35 ms a million.

    Args:
        database: of the table.
        table: its name; it has the columns `timestamp`, with an index, and `id`.
        step: takes each step, which counts a stretch of time; between two of them others have the connection.
    """
    untimed = f"SELECT count(*) AS n FROM {table} WHERE timestamp IS NULL"  # noqa: S608
    between = f"SELECT count(*) AS n FROM {table} WHERE timestamp > ? AND timestamp <= ?"  # noqa: S608
    total = step(partial(_number, database, untimed))
    for since, until in pairwise((_BEFORE_ALL_TIMES, *_times(database, table), _AFTER_ALL_TIMES)):
        total += step(partial(_number, database, between, (since, until)))
    return total


def _times(database: Connected, table: str) -> list[int]:
    """Times between which there are so few rows that they are counted at once, if they came evenly."""
    first, last = oldest(database, table), _newest(database, table)
    steps = max_row_count(database, table) // COUNT_ROWS
    if first is None or last is None:
        return []
    return [first + (last - first) * number // (steps + 1) for number in range(1, steps + 1)]


def _number(database: Connected, query: str, parameters: Sequence[SqlValue] = ()) -> int:
    return int(database.query(query, parameters)[0]["n"] or 0)


def oldest(database: Connected, table: str) -> int | None:
    """The oldest time in a table; None where there is none."""
    timestamp = database.query(f"SELECT min(timestamp) AS oldest FROM {table}")[0]["oldest"]  # noqa: S608
    return timestamp if isinstance(timestamp, int) else None


def _newest(database: Connected, table: str) -> int | None:
    """The newest time in a table that is a number; None where there is none."""
    query = f"SELECT max(timestamp) AS newest FROM {table} WHERE timestamp < ''"  # noqa: S608
    timestamp = database.query(query)[0]["newest"]
    return timestamp if isinstance(timestamp, int) else None


def find_boundary(database: Connected, table: str, rows: int) -> Boundary | None:
    """The boundary behind the oldest rows by time, then id; None where the table has not so many.

    Args:
        database: of the table.
        table: its name; it has the columns `timestamp` and `id`.
        rows: how many lie before the boundary, 1 at least.
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
    (going,) = database.query(
        f"SELECT id FROM {table} WHERE timestamp IS ? ORDER BY id LIMIT 1 OFFSET ?",  # noqa: S608
        (timestamp, rows - older["n"] - 1),
    )
    return Boundary(timestamp, going["id"])


def delete_chunk(database: Connected, table: str, boundary: Boundary) -> int:
    """Delete some of the rows up to a boundary in one transaction; how many: 0 = there are no more.

    Raises:
        DatabaseBusy: another program holds a lock; nothing was deleted.
        DatabaseError: disk full, read-only, damaged; nothing was deleted.
    """
    deleted = 0
    with database.transaction() as connection:
        for older in _OLDER:
            statement = f"DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE {older} LIMIT :rows)"  # noqa: S608
            values = {"timestamp": boundary.timestamp, "id": boundary.id, "rows": CHUNK_ROWS - deleted}
            deleted += connection.execute(statement, values).rowcount
    return deleted


def delete_oldest(database: Connected, table: str, max_rows: int) -> int:
    """Delete the oldest rows beyond a number, in chunks; how many were deleted."""
    total, excess = 0, count_rows(database, table) - max_rows
    while total < excess and (boundary := find_boundary(database, table, min(excess - total, PASS_ROWS))):
        while deleted := delete_chunk(database, table, boundary):
            total += deleted
    return total


def read_space(database: Connected) -> Space:
    """How the database file is filled."""

    def pragma(name: str) -> int:
        return int(database.query(f"PRAGMA {name}")[0][name])

    page_bytes = pragma("page_size")
    return Space(
        pragma("page_count") * page_bytes,
        pragma("freelist_count") * page_bytes,
        page_bytes,
        can_shrink=pragma("auto_vacuum") != 0,
    )


def release_pages(database: Connected) -> None:
    """Give some free pages back to the file system in one short transaction.

    Raises:
        DatabaseBusy: another program holds a lock.
        DatabaseError: disk full, read-only, damaged.
    """
    # One page a step, and `execute` stops after the first step, for they give no rows.
    database.run_script(f"PRAGMA incremental_vacuum({RELEASE_PAGES})")


def analyze(database: Connected, table: str) -> None:
    """Note how the values of a table's indexes are spread, for the choice among them."""
    with database.transaction() as connection:
        connection.execute(f"PRAGMA analysis_limit = {ANALYSIS_LIMIT}")
        connection.execute(f"ANALYZE {table}")


def rewrite(database: Connected) -> None:
    """Write the whole file anew, without free pages, so that from then on it can shrink in small steps.

    Nobody can write meanwhile: about 6 s a GB of content.

    Raises:
        DatabaseBusy: another program holds a lock.
        DatabaseError: there is too little space on the disk for it.
    """
    space = read_space(database)
    needed = space.size_bytes + space.used_bytes + SPARE_BYTES  # its journal and its new content
    free = shutil.disk_usage(database.path.parent).free
    if free < needed:
        raise DatabaseError(
            f"{database.path.parent} has {free / BYTES_PER_MB:,.0f} MB free, and writing the database anew "
            f"needs {needed / BYTES_PER_MB:,.0f} MB for a while: free some space"
        )
    try:
        # In a file: in memory it would take as much of it as the database has content.
        database.run_script("PRAGMA temp_store = FILE; PRAGMA auto_vacuum = INCREMENTAL; VACUUM")
    finally:
        database.run_script("PRAGMA temp_store = MEMORY")
