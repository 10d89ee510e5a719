"""Tables as data: one declaration creates a table, migrates it, fills it and documents it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

SqlValue = None | int | float | str | bytes
Row = tuple[SqlValue, ...]

AUTOMATIC_ID = "INTEGER PRIMARY KEY AUTOINCREMENT"


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Args:
        name: its name, with the unit in it unless the documented name has none.
        declaration: SQL type and constraints, as they stand in CREATE TABLE.
        meaning: what a value says, with unit and range; shown in the README.
    """

    name: str
    declaration: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Index:
    """One index: its name and the columns as they stand in CREATE INDEX."""

    name: str
    columns: str


@dataclass(frozen=True)
class Table:
    """One table of the database and the statements that create and fill it."""

    name: str
    meaning: str
    columns: tuple[Column, ...]
    indexes: tuple[Index, ...] = ()

    @cached_property
    def create_statement(self) -> str:
        """CREATE TABLE, one column a line, as in the documentation."""
        columns = ",\n".join(f"  {column.name} {column.declaration}" for column in self.columns)
        return f"CREATE TABLE {self.name} (\n{columns}\n)"

    @cached_property
    def written_columns(self) -> tuple[str, ...]:
        """Names of the columns that a row holds: all but an automatic id."""
        return tuple(c.name for c in self.columns if c.declaration != AUTOMATIC_ID)

    @cached_property
    def insert_statement(self) -> str:
        """INSERT of one row in the order of `written_columns`."""
        names = ", ".join(self.written_columns)
        marks = ", ".join("?" * len(self.written_columns))
        return f"INSERT INTO {self.name} ({names}) VALUES ({marks})"  # noqa: S608 - names are our own

    @cached_property
    def replace_statement(self) -> str:
        """INSERT OR REPLACE of one row, for tables that hold one current row a key."""
        return self.insert_statement.replace("INSERT", "INSERT OR REPLACE", 1)

    def row(self, values: Mapping[str, SqlValue]) -> Row:
        """The values in the order of `written_columns`; what is not named is NULL.

        Raises:
            KeyError: a name is no column of this table.
        """
        if unknown := values.keys() - set(self.written_columns):
            raise KeyError(f"{self.name} has no column {', '.join(sorted(unknown))}")
        return tuple(map(values.get, self.written_columns))
