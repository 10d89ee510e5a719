"""A database as SQL text that the sqlite3 shell makes an identical database of.

What the shell's own .dump loses is kept here: carriage returns and NULs in texts, the last bits of extreme
numbers, row numbers, the encoding, and the marks that a program has put on its database.
"""

import math
import re
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from collector.schema import quote_identifier

_SEQUENCE, _STATISTICS = "sqlite_sequence", "sqlite_stat1"
_ROW_NUMBER_NAMES = ("rowid", "_rowid_", "oid")
_UNSAFE = re.compile(b"[\\0\\r]")
_SMALLEST_EXACT, _LARGEST_EXACT = 1e-9, 1e15


class _Text(bytes):
    """A text of the database as its bytes, which need not be UTF-8."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class _Table:
    """A table of the database.

    Args:
        name: its name.
        sql: what created it.
        is_virtual: its rows are those of other tables, or none.
        has_row_numbers: whether its rows have numbers beside their columns.
    """

    name: str
    sql: str
    is_virtual: bool
    has_row_numbers: bool


def dump(connection: sqlite3.Connection) -> Iterator[bytes]:
    """The statements, each with its newline, of one and the same moment.

    Commits of others wait until the last one is taken, or the connection is closed.

    Args:
        connection: used for nothing else.
    """
    connection.text_factory = _Text
    connection.execute("BEGIN")
    yield from (b"%s;\n" % statement for statement in _statements(connection))


def count_rows(connection: sqlite3.Connection) -> int:
    """How many rows `dump` has to write."""
    tables = [quote_identifier(table.name) for table in _tables(connection) if not table.is_virtual]
    return sum(connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables)  # noqa: S608


def real_literal(value: float) -> bytes:
    """An expression that SQLite reads as exactly this number.

    SQLite's reading is exact for numbers whose decimals end soon, and for 17 digits that are neither very
    large nor very small. Others are a whole number, times or through powers of two that are whole as well.
    """
    size = abs(value)
    if size < 2**50 and (4 * value).is_integer():
        return b"%r" % value
    if _SMALLEST_EXACT < size < _LARGEST_EXACT:
        return b"%#.17g" % value
    if math.isinf(value):
        return b"1e999" if value > 0 else b"-1e999"
    return _of_whole_numbers(value)


def _of_whole_numbers(value: float) -> bytes:
    fraction, exponent = math.frexp(value)
    expression, exponent = b"%d*1.0" % int(fraction * 2**53), exponent - 53
    operator = b"*" if exponent > 0 else b"/"
    for power in range(abs(exponent), 0, -62):
        expression += operator + b"%d" % 2 ** min(power, 62)
    return b"(%s)" % expression


def _literals(encoding: str) -> dict[type, Callable[[Any], bytes]]:
    """How a value of each type is written in a database of this encoding."""

    def text(value: _Text) -> bytes:
        # A NUL would end it for the reader, and the shell drops a carriage return before a newline.
        if _UNSAFE.search(value):
            coded = value if encoding == "UTF-8" else value.decode().encode(encoding)
            return b"CAST(X'%s' AS TEXT)" % coded.hex().encode()
        return b"'%s'" % value.replace(b"'", b"''")

    return {
        type(None): lambda _: b"NULL",
        int: b"%d".__mod__,
        float: real_literal,
        _Text: text,
        bytes: lambda value: b"X'%s'" % value.hex().encode(),
    }


def _statements(connection: sqlite3.Connection) -> Iterator[bytes]:
    tables = list(_tables(connection))
    for pragma in ("encoding", "page_size", "auto_vacuum"):
        yield _pragma(connection, pragma)
    yield b"PRAGMA foreign_keys=OFF"
    yield b"BEGIN TRANSACTION"
    for pragma in ("user_version", "application_id"):
        yield _pragma(connection, pragma)
    for table in tables:
        if not table.is_virtual:
            yield _complete(table.sql)
            yield from _rows(connection, table)
    yield from _internal_rows(connection, tables)
    for kind in ("index", "view", "trigger"):
        for (sql,) in _written(connection, kind):
            yield _complete(sql.decode())
    yield from _virtual_tables([table for table in tables if table.is_virtual])
    yield b"COMMIT"


def _pragma(connection: sqlite3.Connection, name: str) -> bytes:
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return b"PRAGMA %s=%s" % (name.encode(), b"'%s'" % value if isinstance(value, bytes) else b"%d" % value)


def _tables(connection: sqlite3.Connection) -> Iterator[_Table]:
    """In the order of their creation, without SQLite's own."""
    listed = connection.execute(
        "SELECT m.name, m.sql, t.type = 'virtual', t.wr FROM sqlite_master AS m JOIN pragma_table_list AS t "
        "ON t.schema = 'main' AND t.name = m.name WHERE m.type = 'table' ORDER BY m.rowid"
    )
    for name, sql, is_virtual, is_without_rows in listed.fetchall():
        if not _text(name).startswith("sqlite_"):
            yield _Table(_text(name), _text(sql), bool(is_virtual), not is_without_rows)


def _written(connection: sqlite3.Connection, kind: str) -> list[tuple[bytes]]:
    return connection.execute(
        "SELECT sql FROM sqlite_master WHERE type = ? AND sql IS NOT NULL ORDER BY rowid", (kind,)
    ).fetchall()


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _complete(sql: str) -> bytes:
    """A statement that a semicolon ends: one may end in a comment that would swallow it."""
    return (sql if sqlite3.complete_statement(f"{sql};") else f"{sql}\n").encode()


def _rows(connection: sqlite3.Connection, table: _Table) -> Iterator[bytes]:
    listed = connection.execute(f"PRAGMA table_xinfo({quote_identifier(table.name)})").fetchall()
    columns = [(_text(name), _text(kind), key) for _, name, kind, _, _, key, hidden in listed if not hidden]
    names = [quote_identifier(name) for name, _, _ in columns]
    order = ""
    if table.has_row_numbers:
        taken = {_text(row[1]).lower() for row in listed}
        number = next((name for name in _ROW_NUMBER_NAMES if name not in taken), None)
        keys = [kind.upper() for _, kind, key in columns if key]
        if number and keys != ["INTEGER"]:  # there, the column is the number
            names.insert(0, number)
        order = f" ORDER BY {number}" if number else ""
    is_plain = len(names) == len(listed)
    into = quote_identifier(table.name) + ("" if is_plain else f"({','.join(names)})")
    yield from _inserts(connection, into, f"FROM {quote_identifier(table.name)}{order}", names)


def _inserts(connection: sqlite3.Connection, into: str, source: str, columns: list[str]) -> Iterator[bytes]:
    literals = _literals(_text(connection.execute("PRAGMA encoding").fetchone()[0]))
    start = f"INSERT INTO {into} VALUES(".encode()
    for row in connection.execute(f"SELECT {', '.join(columns)} {source}"):
        yield start + b",".join([literals[type(value)](value) for value in row]) + b")"


def _internal_rows(connection: sqlite3.Connection, tables: list[_Table]) -> Iterator[bytes]:
    """What SQLite itself notes: the highest ids given out, and how the values of indexes are spread."""
    present = {name for (name,) in connection.execute("SELECT name FROM sqlite_master").fetchall()}
    if _SEQUENCE.encode() in present and any("AUTOINCREMENT" in table.sql.upper() for table in tables):
        yield b"DELETE FROM sqlite_sequence"  # the rows above have filled it
        yield from _inserts(connection, _SEQUENCE, f"FROM {_SEQUENCE}", ["name", "seq"])
    if _STATISTICS.encode() in present:
        yield b"ANALYZE sqlite_master"  # makes the table
        yield from _inserts(connection, _STATISTICS, f"FROM {_STATISTICS}", ["tbl", "idx", "stat"])


def _virtual_tables(tables: list[_Table]) -> Iterator[bytes]:
    """Noted without being created: the tables that they keep their rows in are here already."""
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
