"""Create and migrate tables and views.

What is missing is added. Tables, columns, views and indexes of other programs are left as they are.
"""

import sqlite3
from collections.abc import Iterable, Iterator

from collector.database.connection import transaction
from collector.errors import DatabaseError
from collector.schema import VIEW_MARKER, Column, Table, View


def migrate(connection: sqlite3.Connection, tables: Iterable[Table]) -> Iterator[str]:
    """Migrate a database of any earlier version, or an empty one, to these tables.

    Each table, and each index that is dropped, is one transaction: after an interruption at any point
    the next start completes the migration.

    Yields:
        one sentence for each change made.

    Raises:
        DatabaseError: a table of that name exists and cannot become the documented one.
    """
    tables = tuple(tables)
    for table in tables:  # report an unusable database before the first change
        _missing_columns(connection, table)
    for table in tables:
        yield from _migrate_table(connection, table)
        for name in table.retired_indexes:
            find = "SELECT 1 FROM sqlite_master WHERE type = 'index' AND name = ? AND tbl_name = ?"
            if connection.execute(find, (name, table.name)).fetchone():
                with transaction(connection):
                    connection.execute(f"DROP INDEX {name}")
                yield f"dropped index {name}"


def refresh_views(connection: sqlite3.Connection, views: Iterable[View]) -> Iterator[str]:
    """Create the views that are missing, and replace those of ours whose SQL has changed.

    It is one transaction, so that a reader never finds a view missing. If another program has created
    something with the name of a view, that is left as it is and the view is left out.

    Yields:
        one sentence for each change made, and for each view that was left out.
    """
    written = connection.execute("SELECT lower(name), sql FROM sqlite_master WHERE sql IS NOT NULL")
    present = dict(written.fetchall())
    changed = []
    for view in views:
        sql = present.get(view.name)
        if sql is not None and VIEW_MARKER not in sql:
            yield f"left out view {view.name}: another program has created something with that name"
        elif sql != view.create_statement:
            changed.append(view)
    if not changed:
        return
    with transaction(connection):
        for view in changed:
            connection.execute(f"DROP VIEW IF EXISTS {view.name}")
            connection.execute(view.create_statement)
    yield f"wrote view {', '.join(view.name for view in changed)}"


def _migrate_table(connection: sqlite3.Connection, table: Table) -> Iterator[str]:
    """Create a table, or add its missing columns and indexes; yield one sentence for each change."""
    present = _column_names(connection, table)
    missing = _missing_columns(connection, table)
    indexes = connection.execute("SELECT name FROM sqlite_master WHERE type = 'index'")
    new_indexes = {index.name for index in table.indexes} - {name for (name,) in indexes}
    if present and not missing and not new_indexes:
        return
    with transaction(connection):
        if not present:
            connection.execute(table.create_statement)
        for column in missing:
            connection.execute(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {column.declaration}")
        for index in table.indexes:
            connection.execute(table.create_index_statement(index))
    if not present:
        yield f"created table {table.name}"
    for column in missing:
        yield f"added column {table.name}.{column.name}"
    if present and new_indexes:
        yield f"added index {', '.join(sorted(new_indexes))}"


def _missing_columns(connection: sqlite3.Connection, table: Table) -> tuple[Column, ...]:
    present = _column_names(connection, table)
    missing = tuple(c for c in table.columns if c.name.lower() not in present) if present else ()
    for column in missing:
        if "KEY" in column.declaration or "NOT NULL" in column.declaration or "(" in column.declaration:
            raise DatabaseError(
                f"table {table.name} has no column {column.name}, and SQLite cannot add it: this table was "
                "created by another program for another purpose. Name another file in [database] path."
            )
    return missing


def _column_names(connection: sqlite3.Connection, table: Table) -> set[str]:
    kind = connection.execute("SELECT type FROM sqlite_master WHERE name = ?", (table.name,)).fetchone()
    if kind and kind[0] != "table":
        raise DatabaseError(
            f"{table.name} is a {kind[0]} in this database, not a table. "
            "Name another file in [database] path."
        )
    return {row[1].lower() for row in connection.execute(f"PRAGMA table_info({table.name})")}
