"""What other programs put into the file: it stops neither flushes nor checks, and is named where it cannot work."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from collector.catalog import open_database
from collector.commands.status import read_status
from collector.database import Database
from collector.database.buffer import Buffer, Retention
from collector.database.connection import check_integrity, connect_read_only, translate_sqlite_errors
from collector.database.documented import LOGS, METADATA, METRICS
from collector.database.writer import Writer
from collector.errors import DatabaseDamaged, StatementFailed
from collector.logs.reader import LOG_POSITIONS
from collector.sources.host import HOST_METRICS


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "llama.db"
    open_database(path).close()
    return path


def as_other_program(path: Path, script: str) -> None:
    """Run SQL with a function and a collation that only this program has."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.create_function("their_function", 1, lambda value: value, deterministic=True)
        connection.create_collation("their_collation", lambda a, b: (a > b) - (a < b))
        connection.executescript(script)


def line(message: str) -> tuple[str, str, str, int]:
    return "info", message, "llama-server", 5


class Flushes:
    """A writer with one sample, and one log line with its position, in each flush."""

    def __init__(self, database: Database) -> None:
        self.buffer = Buffer()
        self.writer = Writer(database, self.buffer)
        self.database = database
        self._number = 0

    def flush(self) -> None:
        self._number += 1
        self.buffer.add([METRICS.insert(METRICS.row({"timestamp": self._number}))], Retention.DROPPABLE)
        position = LOG_POSITIONS.replace(("log", str(self._number), 5))
        self.buffer.add([LOGS.insert(line(f"line {self._number}")), position], Retention.REREADABLE, 10)
        self.writer.flush()

    def counts(self) -> tuple[int, int, str | None]:
        """Return the number of samples, the number of lines, and the position."""
        (samples,) = self.database.query("SELECT count(*) AS n FROM metrics")
        (lines,) = self.database.query("SELECT count(*) AS n FROM logs")
        positions = self.database.query("SELECT position FROM log_positions")
        return samples["n"], lines["n"], positions[0]["position"] if positions else None


@pytest.fixture
def flushes(path: Path) -> Iterator[Flushes]:
    with open_database(path) as database:
        yield Flushes(database)


HARMLESS = {
    "sqlite-utils enable-fts --create-triggers": """
        CREATE VIRTUAL TABLE logs_fts USING fts5(message, content=logs);
        CREATE TRIGGER logs_ai AFTER INSERT ON logs BEGIN
            INSERT INTO logs_fts (rowid, message) VALUES (new.rowid, new.message); END;
        CREATE TRIGGER logs_ad AFTER DELETE ON logs BEGIN
            INSERT INTO logs_fts (logs_fts, rowid, message) VALUES ('delete', old.rowid, old.message); END;
        """,
    "a trigger that works": "CREATE TABLE n (n); CREATE TRIGGER t AFTER INSERT ON metrics BEGIN INSERT INTO n VALUES (1); END;",
    "a view of another program": "CREATE VIEW newest AS SELECT max(id) FROM metrics;",
    "a view whose table is gone": "CREATE TABLE gone (n); CREATE VIEW v AS SELECT n FROM gone; DROP TABLE gone;",
    "an index with a collation": "CREATE TABLE o (a TEXT COLLATE their_collation); CREATE INDEX oa ON o (a); INSERT INTO o VALUES ('b'), ('a');",
    "an index with a function": "CREATE TABLE o (a); CREATE INDEX oa ON o (their_function(a)); INSERT INTO o VALUES (1);",
    "a row that breaks its CHECK": "CREATE TABLE o (a CHECK (a > 0)); PRAGMA ignore_check_constraints = ON; INSERT INTO o VALUES (-1);",
    "a row that breaks NOT NULL": "CREATE TABLE o (a); INSERT INTO o VALUES (NULL); PRAGMA writable_schema = ON; UPDATE sqlite_master SET sql = 'CREATE TABLE o (a NOT NULL)' WHERE name = 'o';",
    "many rows that break their CHECK": "CREATE TABLE o (a CHECK (a > 0)); PRAGMA ignore_check_constraints = ON; WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 500) INSERT INTO o SELECT -x FROM n;",
    "a virtual table whose module is not here": "PRAGMA writable_schema = ON; INSERT INTO sqlite_master VALUES ('table', 'vectors', 'vectors', 0, 'CREATE VIRTUAL TABLE vectors USING vec0(a float[3])');",
    "a foreign key that is broken": "CREATE TABLE o (m TEXT REFERENCES models (id)); INSERT INTO o VALUES ('nobody');",
    "an index on our table": "CREATE INDEX theirs ON logs (message, level);",
    "a generated column": "ALTER TABLE logs ADD COLUMN length INTEGER GENERATED ALWAYS AS (length(message)) VIRTUAL;",
    "statistics": "ANALYZE;",
    "their version": "PRAGMA user_version = 7; PRAGMA application_id = 99;",
}  # fmt: skip


@pytest.mark.parametrize("script", HARMLESS.values(), ids=HARMLESS)
def test_it_is_no_concern_of_the_collector(script: str, path: Path) -> None:
    as_other_program(path, script)
    with open_database(path) as database:  # checks the whole file, which is small
        flushes = Flushes(database)
        flushes.flush()
        assert flushes.counts() == (1, 1, "1")
        status = read_status(path)
        assert status["database"]["rows"]["metrics"] == 1
    with closing(connect_read_only(path)) as connection:
        check_integrity(connection, path)


FAULTY = {
    "a trigger with a function of the application": (
        "CREATE TRIGGER bad AFTER INSERT ON {table} BEGIN SELECT their_function(1); END;",
        "no such function: their_function",
    ),
    "a trigger that names a dropped table": (
        "CREATE TABLE gone (n); CREATE TRIGGER bad AFTER INSERT ON {table} BEGIN INSERT INTO gone VALUES (1); END; "
        "PRAGMA legacy_alter_table = ON; DROP TABLE gone;",
        "no such table: main.gone",
    ),
    "a trigger that refuses": (
        "CREATE TRIGGER bad BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'not today'); END;",
        "not today",
    ),
    "a trigger that rolls back": (
        "CREATE TRIGGER bad BEFORE INSERT ON {table} BEGIN SELECT RAISE(ROLLBACK, 'not today'); END;",
        "not today",
    ),
    "an index with a function of the application": (
        "CREATE INDEX bad ON {table} (their_function(id));",
        "unknown function: their_function",
    ),
}


@pytest.mark.parametrize("table", ["metrics", "logs"])
@pytest.mark.parametrize(("script", "reason"), FAULTY.values(), ids=FAULTY)
def test_only_the_rows_of_its_table_wait_and_it_is_named(
    script: str, reason: str, table: str, flushes: Flushes, path: Path
) -> None:
    as_other_program(path, script.format(table=table))
    for _ in range(2):
        with pytest.raises(StatementFailed, match=reason) as failure:
            flushes.flush()
        assert f"the table {table} cannot be written" in str(failure.value)
        assert "DROP " in str(failure.value)
        assert "bad" in str(failure.value)
    # A position is never committed without its lines.
    assert flushes.counts() == ((0, 2, "2") if table == "metrics" else (2, 0, None))
    as_other_program(path, "DROP INDEX bad" if "INDEX" in script else "DROP TRIGGER bad")
    flushes.flush()
    assert flushes.counts() == (3, 3, "3"), "nothing is lost, and nothing is there twice"


def test_beside_a_faulty_trigger_the_other_sample_tables_and_the_states_are_written(path: Path) -> None:
    as_other_program(path, FAULTY["a trigger that refuses"][0].format(table="metrics"))
    with open_database(path) as database:
        buffer = Buffer()
        writer = Writer(database, buffer, lambda: METADATA.replace(("final", "1", 5)))
        buffer.add([METRICS.insert(METRICS.row({"timestamp": 1}))], Retention.DROPPABLE)
        buffer.add([HOST_METRICS.insert(HOST_METRICS.row({"timestamp": 1}))], Retention.DROPPABLE)
        with pytest.raises(StatementFailed, match="the table metrics"):
            writer.flush()
        assert len(database.query("SELECT * FROM host_metrics")) == 1
        assert database.meta.get("final") == 1


def test_a_damaged_search_index_of_another_program_costs_no_line(flushes: Flushes, path: Path) -> None:
    as_other_program(
        path,
        "CREATE VIRTUAL TABLE logs_fts USING fts5 (message, content = 'logs', content_rowid = 'id');"
        "CREATE TRIGGER indexed AFTER INSERT ON logs BEGIN "
        "INSERT INTO logs_fts (rowid, message) VALUES (new.id, new.message); END;"
        "INSERT INTO logs (level, message, timestamp) VALUES ('info', 'hello', 1);"
        "UPDATE logs_fts_data SET block = x'ff'",
    )
    with pytest.raises(StatementFailed, match="DROP TRIGGER indexed"):
        flushes.flush()
    assert flushes.counts() == (1, 1, None)
    with closing(connect_read_only(path)) as connection:
        check_integrity(connection, path)
    as_other_program(path, "DROP TRIGGER indexed")
    flushes.flush()
    assert flushes.counts() == (2, 3, "2")


def test_a_flush_of_which_nothing_can_be_written_keeps_its_rows(flushes: Flushes, path: Path) -> None:
    as_other_program(path, FAULTY["a trigger that refuses"][0].format(table="logs"))
    flushes.buffer.add([LOGS.insert(line("waits")), LOGS.insert(line("waits"))], Retention.KEPT)
    with pytest.raises(StatementFailed, match="not today"):
        flushes.writer.flush()
    assert flushes.buffer.waiting == 2
    as_other_program(path, "DROP TRIGGER bad")
    flushes.writer.flush()
    assert flushes.counts()[1] == 2


@pytest.mark.parametrize(
    "value", [2**63, "\ud800", object()], ids=["too large", "a lone surrogate", "an object"]
)
def test_a_value_that_cannot_be_stored_costs_only_its_row(value: object, flushes: Flushes) -> None:
    flushes.buffer.add([LOGS.insert(("info", value, "collector", 5))], Retention.KEPT)  # type: ignore[arg-type]
    flushes.flush()
    assert flushes.counts() == (1, 1, "1")


def test_damage_of_the_file_is_still_found(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executemany(
            "INSERT INTO logs (level, message, source, timestamp) VALUES (?, ?, ?, ?)",
            [line("x" * 500)] * 500,
        )
        connection.execute("CREATE TABLE o (a TEXT COLLATE nocase)")
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'logs'").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * size + 3)
        file.write(b"\xff\xff\xff")
    with pytest.raises(DatabaseDamaged), closing(sqlite3.connect(path)) as connection:
        with translate_sqlite_errors(path):
            check_integrity(connection, path)


def test_another_journal_mode_is_undone_as_soon_as_possible(flushes: Flushes, path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        assert other.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",)
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM logs").fetchone()
        flushes.flush()
        problem = flushes.writer.journal_problem
        assert problem
        assert "close that program" in problem
    flushes.flush()
    assert not flushes.writer.journal_problem
    assert flushes.database.query("PRAGMA journal_mode") == [{"journal_mode": "delete"}]
    assert flushes.counts() == (2, 2, "2")
