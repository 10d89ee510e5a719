"""The contents of a database, and the verification that a copy has the same."""

from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from collector.database.connection import check_integrity, connect_read_only, fetch, translate_sqlite_errors
from collector.database.repositories.base import Record
from collector.errors import BackupFailed, DatabaseError
from collector.schema import quote_identifier

Query = Callable[[str], list[Record]]
"""Returns the rows of a SELECT."""


@dataclass(frozen=True, slots=True)
class Contents:
    """Summary of what is in a database.

    Args:
        schema: the SQL of all tables, indexes, views and triggers.
        rows: number of rows by table.
    """

    schema: frozenset[str]
    rows: dict[str, int]


def read_contents(query: Query, count: Callable[[str], int] | None = None) -> Contents:
    """Read the schema of a database and count its rows.

    Args:
        query: runs a SELECT in that database.
        count: returns the number of rows of a table, given its name; by default each table is counted with
            one SELECT, which reads all of it.
    """
    schema = query("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    # SQLite's own tables are part of the others. A virtual table's rows are in other tables, or nowhere.
    not_counted = ("sqlite_", "CREATE VIRTUAL")
    tables = [
        row["name"]
        for row in schema
        if row["type"] == "table"
        and not (row["name"].startswith(not_counted) or row["sql"].startswith(not_counted))
    ]
    rows = {name: count(name) if count else count_in_one_query(query, name) for name in tables}
    return Contents(frozenset(row["sql"] for row in schema), rows)


def read_file_contents(path: Path) -> Contents:
    """Read the schema of a database file that no process writes, and count its rows.

    Raises:
        DatabaseError: it cannot be read.
    """
    with closing(connect_read_only(path)) as connection, translate_sqlite_errors(path):
        return read_contents(lambda statement: fetch(connection, statement))


def verify(copy: Path, before: Contents, query: Query, is_stopping: Callable[[], bool]) -> Contents:
    """Verify that a copy is undamaged and complete.

    The collector goes on writing while it is copied, so the copy need not equal the database. It must contain
    all that was there before, except rows that were deleted meanwhile. Example: `logs` had 1,000 rows before,
    and the copy has 990. If the database now has 990 or fewer, the others were deleted and the copy is
    complete; if it still has 1,000, the copy is not.

    Args:
        copy: path of the copy.
        before: contents of the database before it was copied.
        query: runs a SELECT in that database, where the copy has fewer rows than before.
        is_stopping: whether to end the verification early.

    Returns:
        The contents of the copy.

    Raises:
        BackupFailed: it is incomplete.
        DatabaseDamaged: it is damaged, which means that the database is damaged too.
    """
    with closing(connect_read_only(copy)) as connection, translate_sqlite_errors(copy):
        connection.set_progress_handler(is_stopping, 100_000)
        check_integrity(connection, copy)
        copied = read_contents(lambda statement: fetch(connection, statement))
    missing = before.schema - copied.schema
    if missing:
        raise BackupFailed(f"the copy lacks {', '.join(sorted(missing)):.200}")
    for table, rows in before.rows.items():
        if copied.rows[table] >= rows:
            continue
        rows_now = 0  # if another program has dropped the table meanwhile
        with suppress(DatabaseError):
            rows_now = count_in_one_query(query, table)
        if copied.rows[table] < rows_now:
            raise BackupFailed(f"the copy has {copied.rows[table]} rows of {table}, and there were {rows}")
    return copied


def count_in_one_query(query: Query, table: str) -> int:
    """Return the number of rows of a table, which one SELECT reads completely."""
    return int(query(f"SELECT count(*) AS n FROM {quote_identifier(table)}")[0]["n"])  # noqa: S608
