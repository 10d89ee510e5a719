"""Tables and views as data: one declaration creates, migrates, fills and documents a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from textwrap import dedent
from typing import Literal

SqlValue = None | int | float | str | bytes
Row = tuple[SqlValue, ...]

BYTES_PER_MB = 2**20
"""Bytes of a megabyte, as the documented schema defines it."""

Kind = Literal["key", "time", "gauge", "counter", "increment", "maximum", "bitmask", "state", "label", "text"]
"""How the values of a column behave over time; rollups, metric types and documents are derived from it.

key        identifies a row, or refers to one
time       Unix seconds
gauge      goes up and down; its mean has a meaning
counter    only grows, from 0 in each run of what it counts
increment  the amount since the previous row; its sum has a meaning
maximum    the highest value since the start of what it measures
bitmask    a sum of flags
state      one of a few values, each of which lasts for a while
label      a name or class of what the row describes
text       any other value, of any SQL type; it is never aggregated
"""

AUTOMATIC_ID = "INTEGER PRIMARY KEY AUTOINCREMENT"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Args:
        name: name of the column; it contains the unit unless the documented name has none.
        declaration: SQL type and constraints, as in CREATE TABLE.
        kind: how its values behave over time.
        meaning: what a value means, with unit and range; shown in the documentation.
    """

    name: str
    declaration: str
    kind: Kind
    meaning: str


@dataclass(frozen=True, slots=True)
class Index:
    """One index of a table.

    Args:
        name: name of the index.
        columns: the indexed columns, as in CREATE INDEX.
        condition: which rows it contains, as in WHERE; all of them if empty.
    """

    name: str
    columns: str
    condition: str = ""


@dataclass(frozen=True, slots=True)
class Write:
    """Rows for one SQL statement, executed once for each of them.

    Args:
        statement: SQL with one placeholder for each value of a row.
        rows: the values of each execution, in this order.
    """

    statement: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Table:
    """One table of the database and the statements that create and fill it.

    Args:
        name: name of the table.
        meaning: what one row is; shown in the documentation.
        columns: the columns, in the order of CREATE TABLE.
        indexes: the indexes; an existing table gets those that it lacks.
        retired_indexes: names of indexes that an earlier version created; the migration drops them.
    """

    name: str
    meaning: str
    columns: tuple[Column, ...]
    indexes: tuple[Index, ...] = ()
    retired_indexes: tuple[str, ...] = ()

    @cached_property
    def create_statement(self) -> str:
        """CREATE TABLE statement with one column per line, as in the documentation."""
        columns = ",\n".join(f"  {column.name} {column.declaration}" for column in self.columns)
        return f"CREATE TABLE {self.name} (\n{columns}\n)"

    def create_index_statement(self, index: Index) -> str:
        """Return the CREATE INDEX IF NOT EXISTS statement of an index of this table."""
        condition = f" WHERE {index.condition}" if index.condition else ""
        return f"CREATE INDEX IF NOT EXISTS {index.name} ON {self.name}({index.columns}){condition}"

    @cached_property
    def written_columns(self) -> tuple[str, ...]:
        """Names of the columns that a `Row` contains: all except an automatic id."""
        return tuple(c.name for c in self.columns if c.declaration != AUTOMATIC_ID)

    @cached_property
    def insert_statement(self) -> str:
        """INSERT statement of one row, in the order of `written_columns`."""
        names = ", ".join(self.written_columns)
        placeholders = ", ".join("?" * len(self.written_columns))
        return f"INSERT INTO {self.name} ({names}) VALUES ({placeholders})"  # noqa: S608 - names are our own

    @cached_property
    def replace_statement(self) -> str:
        """INSERT OR REPLACE statement of one row, for tables with one current row per key."""
        return self.insert_statement.replace("INSERT", "INSERT OR REPLACE", 1)

    def insert(self, *rows: Row) -> Write:
        """Return an INSERT of these rows, each in the order of `written_columns`."""
        return Write(self.insert_statement, rows)

    def replace(self, *rows: Row) -> Write:
        """Return an INSERT OR REPLACE of these rows, each in the order of `written_columns`."""
        return Write(self.replace_statement, rows)

    def row(self, values: Mapping[str, SqlValue]) -> Row:
        """Return a row of values in the order of `written_columns`; columns without a value are NULL.

        Raises:
            KeyError: a name is not a column of this table.
        """
        if unknown := values.keys() - set(self.written_columns):
            raise KeyError(f"{self.name} has no column {', '.join(sorted(unknown))}")
        return tuple(map(values.get, self.written_columns))


VIEW_MARKER = "-- a view of llama-collector"
"""Comment in the SQL of each view of the collector: a view without it was created by another program."""


@dataclass(frozen=True, slots=True)
class ViewColumn:
    """One column of a view.

    Args:
        name: name of the column; it contains the unit.
        expression: SQL expression of the value.
        meaning: what a value means, with unit and range; shown in the documentation.
    """

    name: str
    expression: str
    meaning: str


@dataclass(frozen=True)
class View:
    """One view: a named query.

    Args:
        name: name of the view.
        meaning: the question that it answers, and what one row is.
        columns: the columns of its result.
        source: the rest of its SELECT, from FROM on.
        common: the WITH clause before the SELECT.
    """

    name: str
    meaning: str
    columns: tuple[ViewColumn, ...]
    source: str
    common: str = ""

    @cached_property
    def create_statement(self) -> str:
        """CREATE VIEW statement; its comment contains the meaning, for users who read the schema."""
        columns = ",\n".join(f"  {column.expression} AS {column.name}" for column in self.columns)
        parts = (self.common, f"SELECT\n{columns}", self.source)
        select = "\n".join(dedent(part).strip("\n") for part in parts if part)
        return f"CREATE VIEW {self.name} AS {VIEW_MARKER}: {self.meaning}\n{select}"


def quote_identifier(name: str) -> str:
    """Return a name in double quotes, as an identifier in SQL."""
    return '"' + name.replace('"', '""') + '"'
