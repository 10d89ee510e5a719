"""What a database contains, and the proof that a copy contains the same."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from collector.database.connection import check_integrity, connect_read_only, fetch, translate_sqlite_errors
from collector.database.repositories.base import Record
from collector.errors import BackupFailed, DatabaseError
from collector.schema import quote_identifier

Query = Callable[[str], list[Record]]


@dataclass(frozen=True, slots=True)
class Contents:
    """What a database holds.

    Args:
        schema: the SQL of all tables, indexes, views and triggers.
        rows: of each table.
    """

    schema: frozenset[str]
    rows: dict[str, int]


def read_contents(query: Query, count: Callable[[str], int] | None = None) -> Contents:
    """What the database behind this query holds.

    Args:
        query: asks it.
        count: how many rows a table has, given its name; all are counted at once if it is left out.
    """
    count = count or (lambda name: int(query(f"SELECT count(*) AS n FROM {quote_identifier(name)}")[0]["n"]))  # noqa: S608
    schema = query("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    not_counted = ("sqlite_", "CREATE VIRTUAL")  # the rows of a virtual table stand in others, or nowhere
    tables = [
        row["name"]
        for row in schema
        if row["type"] == "table"
        and not (row["name"].startswith(not_counted) or row["sql"].startswith(not_counted))
    ]
    return Contents(frozenset(row["sql"] for row in schema), {name: count(name) for name in tables})


def read_file_contents(path: Path) -> Contents:
    """What a database file holds that nobody writes.

    Raises:
        DatabaseError: it cannot be read.
    """
    with closing(connect_read_only(path)) as connection, translate_sqlite_errors(path):
        return read_contents(lambda statement: fetch(connection, statement))


def verify(copy: Path, before: Contents, query: Query, is_stopping: Callable[[], bool]) -> Contents:
    """Prove that a copy is sound and whole; what it holds.

    Args:
        copy: the file.
        before: what the database held before it was copied.
        query: asks that database again, where the copy has less: rows may have been deleted meanwhile.
        is_stopping: ends the proof early.

    Raises:
        BackupFailed: it is not whole.
        DatabaseDamaged: it is not sound, and so neither is the database.
    """
    with closing(connect_read_only(copy)) as connection, translate_sqlite_errors(copy):
        connection.set_progress_handler(is_stopping, 100_000)
        check_integrity(connection, copy)
        copied = read_contents(lambda statement: fetch(connection, statement))
    missing = before.schema - copied.schema
    if missing:
        raise BackupFailed(f"the copy lacks {', '.join(sorted(missing)):.200}")
    for table, rows in before.rows.items():
        if copied.rows[table] < rows and copied.rows[table] < _count(query, table):
            raise BackupFailed(f"the copy has {copied.rows[table]} rows of {table}, and there were {rows}")
    return copied


def _count(query: Query, table: str) -> int:
    try:
        return int(query(f"SELECT count(*) AS n FROM {quote_identifier(table)}")[0]["n"])  # noqa: S608
    except DatabaseError:
        return 0  # it was dropped meanwhile
