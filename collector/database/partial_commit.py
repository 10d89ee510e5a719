"""A flush of which a part cannot be written: the rest of it is committed.

Two kinds of causes, neither of which may keep all other tables waiting:

- a value of ours that does not fit: example: another program has created a UNIQUE index on the messages of
  `logs`, and a message is repeated. The row is left out, and logged;
- something that another program has put on a table: example: a trigger that calls a function which only that
  program has. All rows of that table stay in the buffer, and the error names the trigger and the remedy.
"""

import sqlite3
from dataclasses import dataclass

import structlog

from collector.database.buffer import Batch, Retention, written_table
from collector.database.database import Database
from collector.database.flush_transaction import FlushTransactions
from collector.errors import StatementFailed
from collector.schema import Row, Write

VALUE_ERRORS = (
    sqlite3.IntegrityError,
    sqlite3.ProgrammingError,
    sqlite3.InterfaceError,
    OverflowError,
    UnicodeError,
)
"""Raised because of a value in a row, as opposed to the state of the file."""

_SHOWN_ROWS = 5


@dataclass(frozen=True, slots=True)
class RefusedBatches:
    """Batches that could not be written.

    Args:
        batches: in their order.
        error: names the objects that prevent it, and says what to do.
    """

    batches: list[Batch]
    error: StatementFailed


@dataclass(slots=True)
class Unit:
    """Batches that are written together or not at all.

    Log lines and the position after them are one unit: a position without its lines would lose them.

    Args:
        statements: rows by statement.
        batches: what they were made of.
    """

    statements: dict[str, list[Row]]
    batches: list[Batch]


class PartialCommit:
    """Commits as many units of a flush as possible.

    Args:
        database: the database.
        transactions: the transactions of its writer.
    """

    def __init__(self, database: Database, transactions: FlushTransactions) -> None:
        self._database = database
        self._transactions = transactions
        self._left_out: list[str] = []

    def run(self, batches: list[Batch], final: Write | None) -> RefusedBatches | None:
        """Commit in one transaction all units that can be written; return the others.

        Raises:
            DatabaseError: nothing was written.
        """
        refused: list[Unit] = []
        errors: list[str] = []
        units = _units(batches, final)
        while units:
            self._left_out = []
            unit, statement = units[0], ""
            try:
                with self._transactions.begin() as connection:
                    for unit in units:
                        for statement, rows in unit.statements.items():
                            self._write(connection, statement, rows)
                break
            except StatementFailed as error:
                # The whole transaction is begun anew without it: RAISE(ROLLBACK) in a trigger ends it.
                units.remove(unit)
                refused.append(unit)
                errors.append(self._describe(statement, error))
        if self._left_out:
            structlog.get_logger().error(
                "rows do not fit their table and were left out", rows=self._left_out[:_SHOWN_ROWS]
            )
        if not refused:
            return None
        waiting = {id(batch) for unit in refused for batch in unit.batches}
        in_order = [batch for batch in batches if id(batch) in waiting]
        return RefusedBatches(in_order, StatementFailed("; ".join(errors)))

    def _write(self, connection: sqlite3.Connection, statement: str, rows: list[Row]) -> None:
        """Write rows one by one, and leave out those that do not fit.

        Raises:
            StatementFailed: another program's trigger refuses them.
            sqlite3.OperationalError: another program's object cannot be used here.
        """
        for row in rows:
            try:
                connection.execute(statement, row)
            except VALUE_ERRORS as error:
                if _is_fault_of_trigger(error, written_table(statement)):
                    raise StatementFailed(str(error)) from error
                self._left_out.append(f"{statement.split('(', maxsplit=1)[0]}: {error}: {row!r:.300}")

    def _describe(self, statement: str, error: StatementFailed) -> str:
        """Return which table cannot be written, what other programs have put on it, and what to do."""
        table = written_table(statement)
        objects = self._database.query(
            "SELECT type, name FROM sqlite_master WHERE tbl_name = ? AND (type = 'trigger' "
            "OR type = 'index' AND sql LIKE '%(%(%') ORDER BY type DESC, name",
            (table,),
        )
        text = f"the table {table} cannot be written ({error}). Its rows wait; the other tables are written"
        if objects:
            names = ", ".join(f"{one['type']} {one['name']}" for one in objects)
            example = f"DROP {objects[0]['type'].upper()} {objects[0]['name']}"
            text += f". Other programs have put on it: {names}. Remove what causes it, for example: {example}"
        return text


def _is_fault_of_trigger(error: Exception, table: str) -> bool:
    """Return whether not the row broke a rule of its table, but what a trigger did with the row.

    SQLite names the table, or the index, whose rule was broken. Example of another error: the trigger adds
    the row to a full-text index whose own tables are damaged: `constraint failed`.
    """
    if not isinstance(error, sqlite3.IntegrityError):
        return False
    if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_CONSTRAINT_TRIGGER:
        return True
    return f"constraint failed: {table}." not in str(error) and "constraint failed: index " not in str(error)


def _units(batches: list[Batch], final: Write | None) -> list[Unit]:
    """Divide the batches of a flush into units, in the order of their first batches."""
    units: dict[object, Unit] = {}
    for batch in batches:
        key = (
            batch.retention if batch.retention is Retention.REREADABLE else (batch.retention, batch.statement)
        )
        unit = units.setdefault(key, Unit({}, []))
        unit.statements.setdefault(batch.statement, []).extend(batch.rows)
        unit.batches.append(batch)
    if final:
        units["final"] = Unit({final.statement: list(final.rows)}, [])
    return list(units.values())
