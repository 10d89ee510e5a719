"""A database as SQL text from which the sqlite3 shell makes an identical database.

It keeps what the shell's own .dump loses: carriage returns and NULs in texts, the last bits of very large and
very small numbers, row numbers, the encoding, and the version numbers that a program stored in its database.
"""

import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

from collector.backups.sql_literals import Text, literal_functions
from collector.errors import ExportFailed
from collector.schema import quote_identifier

_SEQUENCE, _STATISTICS = "sqlite_sequence", "sqlite_stat1"
_ROW_NUMBER_NAMES = ("rowid", "_rowid_", "oid")


@dataclass(frozen=True, slots=True)
class _Table:
    """A table of the database.

    Args:
        name: its name.
        sql: the statement that created it.
        is_virtual: its rows are in other tables, or nowhere.
        has_row_numbers: whether its rows have numbers beside their columns (no WITHOUT ROWID).
    """

    name: str
    sql: str
    is_virtual: bool
    has_row_numbers: bool


def dump(connection: sqlite3.Connection) -> Iterator[bytes]:
    """Yield the statements of the text, each with its newline; all are of one moment.

    Commits of other connections wait until the last statement was yielded, or the connection is closed.

    Args:
        connection: not used for anything else.
    """
    connection.text_factory = Text
    connection.execute("BEGIN")
    yield from (b"%s;\n" % statement for statement in _statements(connection))


def count_rows(connection: sqlite3.Connection) -> int:
    """Return the number of rows that `dump` writes."""
    tables = [quote_identifier(table.name) for table in _tables(connection) if not table.is_virtual]
    return sum(connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables)  # noqa: S608


def _statements(connection: sqlite3.Connection) -> Iterator[bytes]:
    """Yield the statements in the order of their execution, without the semicolons after them."""
    tables = list(_tables(connection))
    for pragma in ("encoding", "page_size", "auto_vacuum"):  # these are fixed once there is a table
        yield _pragma(connection, pragma)
    yield b"PRAGMA foreign_keys=OFF"
    yield b"BEGIN TRANSACTION"
    for pragma in ("user_version", "application_id"):
        yield _pragma(connection, pragma)
    for table in tables:
        if not table.is_virtual:
            yield _terminated(table.sql)
            yield from _table_inserts(connection, table)
    # SQLite's own tables: the highest ids that were assigned, and the statistics of indexes.
    present = {name for (name,) in connection.execute("SELECT name FROM sqlite_master").fetchall()}
    if _SEQUENCE.encode() in present and any("AUTOINCREMENT" in table.sql.upper() for table in tables):
        yield b"DELETE FROM sqlite_sequence"  # the INSERTs above have filled it
        yield from _inserts(connection, _SEQUENCE, f"FROM {_SEQUENCE}", ["name", "seq"])
    if _STATISTICS.encode() in present:
        yield b"ANALYZE sqlite_master"  # creates the table
        yield from _inserts(connection, _STATISTICS, f"FROM {_STATISTICS}", ["tbl", "idx", "stat"])
    for kind in ("index", "view", "trigger"):  # after all rows: faster, and no trigger is fired
        created = connection.execute(
            "SELECT sql FROM sqlite_master WHERE type = ? AND sql IS NOT NULL ORDER BY rowid", (kind,)
        )
        for (sql,) in created.fetchall():
            yield _terminated(sql.decode())
    yield from _virtual_tables([table for table in tables if table.is_virtual])
    yield b"COMMIT"


def _pragma(connection: sqlite3.Connection, name: str) -> bytes:
    """Return the PRAGMA that sets a property of the database to its present value."""
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return b"PRAGMA %s=%s" % (name.encode(), b"'%s'" % value if isinstance(value, bytes) else b"%d" % value)


def _tables(connection: sqlite3.Connection) -> Iterator[_Table]:
    """Yield all tables but SQLite's own, in the order of their creation."""
    rows = connection.execute(
        "SELECT m.name, m.sql, t.type = 'virtual', t.wr FROM sqlite_master AS m JOIN pragma_table_list AS t "
        "ON t.schema = 'main' AND t.name = m.name WHERE m.type = 'table' ORDER BY m.rowid"
    )
    for name, sql, is_virtual, is_without_rowid in rows.fetchall():
        if not _decoded(name).startswith("sqlite_"):
            yield _Table(_decoded(name), _decoded(sql), bool(is_virtual), not is_without_rowid)


def _decoded(value: bytes | str) -> str:
    """Return a name or SQL as a string: `dump` reads bytes, `count_rows` strings."""
    return value.decode() if isinstance(value, bytes) else value


def _terminated(sql: str) -> bytes:
    """Return a statement that a semicolon can follow, and that a shell reads as one statement.

    Somebody can have written anything into `sqlite_master`: `CREATE TABLE t (a);` and, on the next line,
    `.shell …`, which the sqlite3 shell of whoever reads the text would run.

    SQLite stores the statement as it was written. One that ends in a comment, `CREATE VIEW v AS … -- all of
    them`, would hide a semicolon on the same line, so a newline is added.
    """
    terminated = sql if sqlite3.complete_statement(f"{sql};") else f"{sql}\n"
    if not sql.lstrip().upper().startswith("CREATE") or not _is_one_statement(terminated):
        raise ExportFailed(f"the schema of the database has text that is not one statement: {sql!r:.200}")
    return terminated.encode()


def _is_one_statement(sql: str) -> bool:
    """Return whether a shell finds no end of a statement inside a text.

    It ends one at a semicolon, and at a line that consists of `/` or `go`.
    """
    ends = (match.start() for match in _END_OF_STATEMENT(sql))
    return not any(sqlite3.complete_statement(f"{sql[:end]};") for end in ends)


_END_OF_STATEMENT = re.compile(r";|^[ \t]*(?:/|go)[ \t]*$", re.IGNORECASE | re.MULTILINE).finditer


def _table_inserts(connection: sqlite3.Connection, table: _Table) -> Iterator[bytes]:
    """Yield an INSERT for each row of a table.

    Row numbers are written where they are not a column anyway, because other tables or a program may refer to
    them. Their name is `rowid`, or another one where the table has a column of that name: of
    `CREATE TABLE numbered (rowid TEXT, oid TEXT)` the row number can only be read as `_rowid_`.
    """
    all_columns = connection.execute(f"PRAGMA table_xinfo({quote_identifier(table.name)})").fetchall()
    columns = [  # a generated column is hidden: it cannot be inserted
        (_decoded(name), _decoded(kind), key)
        for _, name, kind, _, _, key, hidden in all_columns
        if not hidden
    ]
    names = [quote_identifier(name) for name, _, _ in columns]
    order = ""
    if table.has_row_numbers:
        used = {_decoded(row[1]).lower() for row in all_columns}
        row_number = next((name for name in _ROW_NUMBER_NAMES if name not in used), None)
        key_types = [kind.upper() for _, kind, key in columns if key]
        if row_number and key_types != ["INTEGER"]:  # INTEGER PRIMARY KEY is the row number itself
            names.insert(0, row_number)
        order = f" ORDER BY {row_number}" if row_number else ""
    has_all_columns = len(names) == len(all_columns)
    into = quote_identifier(table.name) + ("" if has_all_columns else f"({','.join(names)})")
    yield from _inserts(connection, into, f"FROM {quote_identifier(table.name)}{order}", names)


def _inserts(connection: sqlite3.Connection, into: str, source: str, columns: list[str]) -> Iterator[bytes]:
    """Yield an INSERT for each row of a query.

    Args:
        connection: connection to the database.
        into: the table, and its columns in parentheses unless the query has all of them.
        source: the query from FROM on.
        columns: the columns of the query.
    """
    literals = literal_functions(_decoded(connection.execute("PRAGMA encoding").fetchone()[0]))
    start = f"INSERT INTO {into} VALUES(".encode()
    for row in connection.execute(f"SELECT {', '.join(columns)} {source}"):
        yield start + b",".join([literals[type(value)](value) for value in row]) + b")"


def _virtual_tables(tables: list[_Table]) -> Iterator[bytes]:
    """Yield statements that enter virtual tables into the schema.

    CREATE VIRTUAL TABLE would create the tables in which a virtual table stores its rows, for example the
    five of a full-text index. Those are ordinary tables, and were written above.
    """
    if not tables:
        return
    yield b"PRAGMA writable_schema=ON"
    for table in tables:
        name, sql = (text.replace("'", "''") for text in (table.name, table.sql))
        yield (
            "INSERT INTO sqlite_master(type,name,tbl_name,rootpage,sql) "
            f"VALUES('table','{name}','{name}',0,'{sql}')"
        ).encode()
    yield b"PRAGMA writable_schema=OFF"
