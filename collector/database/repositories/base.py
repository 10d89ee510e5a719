"""The common part of the five repositories: rows as dictionaries, and errors that name the value."""

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from collector.errors import DatabaseError, ValueNotStorable
from collector.schema import SqlValue, Table

Record = dict[str, Any]


class Connected(Protocol):
    """The owner of the one writing connection: `Database`."""

    path: Path

    def query(self, statement: str, parameters: Sequence[object] = ()) -> list[Record]:
        """Return all rows of a SELECT, as dictionaries."""

    def transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        """Run the block in a write transaction; inside another one, as part of it."""

    def run_script(self, script: str) -> None:
        """Run statements that cannot be part of a transaction."""


class Repository:
    """The documented operations on one table.

    Args:
        database: the open database.
    """

    table: Table

    def __init__(self, database: Connected) -> None:
        self._database = database

    @contextmanager
    def _write(self, values: Mapping[str, object]) -> Iterator[sqlite3.Connection]:
        """Run the block in a write transaction; translate an error about a value into one that names it."""
        with self._database.transaction() as connection:
            try:
                yield connection
            except (sqlite3.Error, OverflowError, UnicodeEncodeError, TypeError) as error:
                explain_value(self.table, values, error)
                raise

    def _newest(self, limit: int) -> list[Record]:
        """Return the newest rows, newest first; rows of the same second by descending id."""
        query = f"SELECT * FROM {self.table.name} ORDER BY timestamp DESC, id DESC LIMIT ?"  # noqa: S608
        return self._database.query(query, (limit,))


def explain_value(table: Table, values: Mapping[str, object], error: Exception) -> None:
    """Raise `ValueNotStorable` if a value made the statement fail."""
    for column in table.columns:
        if column.name in values and (
            reason := _reason_not_storable(values[column.name], column.declaration)
        ):
            raise ValueNotStorable(table.name, column.name, values[column.name], reason) from error


def _reason_not_storable(value: object, declaration: str) -> str | None:
    """Return why SQLite cannot store a value in a column with this declaration; None if it can."""
    if value is None:
        return "it must not be NULL" if "NOT NULL" in declaration else None
    if not isinstance(value, SqlValue | bool):
        return f"SQLite has no type for {type(value).__name__}"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "it needs more than 64 bits"
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        return "it is not valid Unicode (a lone surrogate)"
    return None


def encode_json(table: Table, value: object) -> str:
    """Return the value as JSON text that every JSON parser accepts (no NaN, no infinity).

    Raises:
        ValueNotStorable: it cannot be written as JSON.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueNotStorable(table.name, "value", value, str(error)) from error


def decode_json(table: Table, key: str, text: str) -> Any:
    """Return the value that is stored in a row.

    Raises:
        DatabaseError: the text is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, TypeError) as error:
        raise DatabaseError(f"{table.name}.value of {key!r} is not JSON ({error}): set it again") from error
