"""The SQL text, and the documented ways to restore a database, each read back by Python and the sqlite3 shell.

The tests with the shell are marked slow only because it must be installed.
"""

import math
import shutil
import sqlite3
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from collector.backups.sql_literals import product_literal, real_literal
from collector.backups.sql_text import dump
from collector.database import Database
from collector.database.connection import connect_read_only
from collector.schema import SqlValue, quote_identifier
from tests.support.collector import WAIT_SECONDS, Collector

QUIET = '[llama_server]\nurl = ""\n[gpu]\nenabled = false\n'
PRAGMAS = ("encoding", "page_size", "auto_vacuum", "user_version", "application_id")

Import = Callable[[bytes, Path], None]


def import_by_python(text: bytes, target: Path) -> None:
    with closing(sqlite3.connect(target)) as connection:
        connection.executescript(text.decode())


def import_by_shell(text: bytes, target: Path) -> None:
    subprocess.run(["sqlite3", "-bail", target], input=text, check=True, capture_output=True)


IMPORTS = pytest.mark.parametrize(
    "import_text", [import_by_python, pytest.param(import_by_shell, marks=pytest.mark.slow)]
)


def dump_file(path: Path) -> bytes:
    with closing(connect_read_only(path)) as connection:
        return b"".join(dump(connection))


def content(path: Path) -> dict[str, Any]:
    """Return everything in a database: its pragmas, schema, and every value with its type."""
    with closing(sqlite3.connect(path)) as connection:
        connection.text_factory = bytes
        pragmas = {name: connection.execute(f"PRAGMA {name}").fetchone() for name in PRAGMAS}
        schema = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall()
        tables = [row[1].decode() for row in schema if row[0] == b"table"]
        rows = {
            table: list(map(exact_values, connection.execute(f"SELECT * FROM {quote_identifier(table)}")))
            for table in tables
        }
        return pragmas | {"schema": sorted(schema, key=repr)} | rows


def exact_values(row: tuple[SqlValue, ...]) -> tuple[object, ...]:
    return tuple(struct.pack("d", value) if isinstance(value, float) else value for value in row)


def create(path: Path, script: str) -> Path:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)
    return path


FLOATS = st.floats(allow_nan=False).map(lambda value: value + 0.0)  # SQLite has no negative zero
VALUES = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    FLOATS,
    st.text(st.characters(exclude_categories=["Cs"])),
    st.text("'\"\r\n\0;-./ ", max_size=8),
    st.binary(max_size=20),
)
ROWS = st.lists(st.tuples(*[VALUES] * 5), min_size=1, max_size=20)


@IMPORTS
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS)
@example(rows=[(math.inf, -math.inf, 5e-324, 1.7976931348623157e308, -1.1352904205810249e-307)])
@example(rows=[("a\r\nb", "\r", "\0", "x\0'y", ".quit\n;\n.quit"), (b"\0\r\n'", b"", "", "'", "--")])
@example(rows=[(-(2**63), 2**63 - 1, 0.1 + 0.2, 1e15, 123456789012345680.0)])
def test_every_value_is_restored_with_its_type(tmp_path: Path, import_text: Import, rows: list[Any]) -> None:
    source, target = tmp_path / "source.db", tmp_path / "target.db"
    source.unlink(missing_ok=True)
    target.unlink(missing_ok=True)
    with closing(sqlite3.connect(source)) as connection:
        connection.execute("CREATE TABLE t (plain, t TEXT, i INTEGER, r REAL, n NUMERIC)")
        connection.executemany("INSERT INTO t VALUES (?, ?, ?, ?, ?)", rows)
        connection.commit()
    import_text(dump_file(source), target)
    assert content(target) == content(source)


@settings(deadline=None)
@given(value=st.one_of(FLOATS, st.floats(-1e15, 1e15), st.floats(-1, 1)))
def test_sqlite_reads_every_number_exactly(value: float) -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        assert connection.execute(f"SELECT {real_literal(value).decode()}").fetchone() == (value,)
        if math.isfinite(value):
            product = product_literal(value).decode()
            assert connection.execute(f"SELECT {product}").fetchone() == (value,)


FOREIGN = """
PRAGMA encoding = 'UTF-16le';
PRAGMA page_size = 1024;
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA user_version = 7;
PRAGMA application_id = 4711;
CREATE TABLE "odd ""name; --" ("a b" INTEGER DEFAULT 'x
y', "select" TEXT CHECK ("select" <> ''), UNIQUE ("a b"));
INSERT INTO "odd ""name; --" (rowid, "a b", "select") VALUES (9, 1, 'é'), (4, 2, 'ü
');
CREATE TABLE parent (id INTEGER PRIMARY KEY AUTOINCREMENT, word TEXT);
INSERT INTO parent VALUES (50, 'gone'), (2, 'x');
DELETE FROM parent WHERE id = 50;
CREATE TABLE child (parent REFERENCES parent (id) ON DELETE CASCADE, half REAL AS (parent / 2.0), s INT AS (parent + 1) STORED);
INSERT INTO child (parent) VALUES (2), (3);
CREATE TABLE without (a TEXT PRIMARY KEY, b) WITHOUT ROWID;
INSERT INTO without VALUES ('z', 1), ('a', 2);
CREATE TABLE numbered (rowid TEXT, oid TEXT);
INSERT INTO numbered (_rowid_, rowid, oid) VALUES (5, 'own', 'names');
CREATE TABLE empty (x);
CREATE INDEX some ON parent (word) WHERE word IS NOT NULL;
CREATE UNIQUE INDEX expressed ON parent (lower(word), id DESC);
CREATE VIEW v AS SELECT word FROM parent -- all of them
;
CREATE TRIGGER told AFTER INSERT ON parent BEGIN INSERT INTO empty VALUES (new.word); SELECT 1; END;
CREATE TRIGGER instead INSTEAD OF INSERT ON v BEGIN INSERT INTO parent (word) VALUES (new.word); END;
ANALYZE;
"""


@IMPORTS
def test_the_tables_indexes_views_and_triggers_of_other_programs_are_restored(
    tmp_path: Path, import_text: Import
) -> None:
    source = create(tmp_path / "source.db", FOREIGN)
    import_text(dump_file(source), tmp_path / "target.db")
    assert content(tmp_path / "target.db") == content(source)
    numbers = 'SELECT rowid FROM "odd ""name; --" ORDER BY rowid', "SELECT _rowid_ FROM numbered"
    with closing(sqlite3.connect(tmp_path / "target.db")) as connection:
        assert [connection.execute(query).fetchall() for query in numbers] == [[(4,), (9,)], [(5,)]]


@IMPORTS
def test_a_full_text_index_of_another_program_is_restored(tmp_path: Path, import_text: Import) -> None:
    source = create(
        tmp_path / "source.db",
        "CREATE VIRTUAL TABLE \"it's\" USING fts5 (words); INSERT INTO \"it's\" VALUES ('some words'), ('other words')",
    )
    target = tmp_path / "target.db"
    import_text(dump_file(source), target)
    assert content(target) == content(source)
    with closing(sqlite3.connect(target)) as connection:
        found = connection.execute("SELECT words FROM \"it's\" WHERE \"it's\" MATCH 'other'").fetchall()
        assert found == [("other words",)]
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.slow
def test_text_that_is_not_utf_8_is_restored(tmp_path: Path) -> None:
    source = create(
        tmp_path / "source.db", "CREATE TABLE t (a); INSERT INTO t VALUES (CAST(X'ff27fe0a80' AS TEXT))"
    )
    import_by_shell(dump_file(source), tmp_path / "target.db")
    assert content(tmp_path / "target.db") == content(source)


@pytest.fixture
def collected(tmp_path: Path) -> Collector:
    """A collector that has stopped, with a database that contains samples and a model."""
    collector = Collector(tmp_path, QUIET)
    with collector:
        collector.wait_for("SELECT * FROM metrics")
        assert collector.stop() == 0
    with Database(collector.database) as database:
        database.models.save({"name": "it's\na model", "parameters": {"text": "\r\n"}})
    return collector


@IMPORTS
def test_a_database_of_the_collector_is_restored_completely(
    collected: Collector, tmp_path: Path, import_text: Import
) -> None:
    ended = subprocess.run(collected.command("export"), capture_output=True, check=True)
    import_text(ended.stdout, tmp_path / "target.db")
    assert content(tmp_path / "target.db") == content(collected.database)


def test_the_file_has_the_mode_of_the_database(collected: Collector, tmp_path: Path) -> None:
    collected.database.chmod(0o640)
    output = tmp_path / "all.sql"
    assert collected.call("export", "--output", str(output)).returncode == 0
    assert output.read_bytes() == dump_file(collected.database)
    assert stat.S_IMODE(output.stat().st_mode) == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.sql", "collector.toml", "data"]


def test_an_existing_file_is_replaced_only_by_force(collected: Collector, tmp_path: Path) -> None:
    output = tmp_path / "all.sql"
    output.write_text("precious")
    refused = collected.call("export", "--output", str(output))
    assert (refused.returncode, output.read_text()) == (1, "precious")
    assert "--force" in refused.stderr
    assert collected.call("export", "--output", str(output), "--force").returncode == 0
    assert output.read_bytes() == dump_file(collected.database)


def test_a_device_is_not_replaced_even_by_force(collected: Collector) -> None:
    refused = collected.call("export", "--output", "/dev/null", "--force")
    assert refused.returncode == 1
    assert Path("/dev/null").is_char_device()


def test_an_export_that_fails_leaves_the_existing_file(tmp_path: Path) -> None:
    collector = Collector(tmp_path, QUIET)
    collector.database.parent.mkdir()
    collector.database.write_bytes(b"no database" * 1000)
    output = tmp_path / "all.sql"
    output.write_text("precious")
    assert collector.call("export", "--output", str(output), "--force").returncode == 1
    assert output.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.sql", "collector.toml", "data"]


def test_an_export_whose_reader_closes_the_pipe_ends_without_an_error_message(collected: Collector) -> None:
    with subprocess.Popen(
        collected.command("export"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


@pytest.mark.slow
def test_the_text_is_of_one_moment_while_a_collector_writes_and_no_row_is_lost(tmp_path: Path) -> None:
    with Collector(tmp_path, f"{QUIET}[sampling]\ninterval = 1\n") as collector:
        collector.wait_for("SELECT * FROM metrics")
        with closing(connect_read_only(collector.database)) as connection:
            statements = dump(connection)
            text = b"".join(next(statements) for _ in range(9))  # including rows of the first table
            wait_for_refused_commit(collector.database)
            text += b"".join(statements)
        collector.wait_for("SELECT 1 FROM (SELECT count(*) AS n FROM metrics) WHERE n > 4")
        assert collector.stop() == 0
        times = [
            row["timestamp"] for row in collector.query("SELECT timestamp FROM host_metrics ORDER BY id")
        ]
    import_by_python(text, tmp_path / "target.db")
    with closing(sqlite3.connect(tmp_path / "target.db")) as connection:
        (samples,) = connection.execute("SELECT count(*) FROM metrics").fetchone()
        assert connection.execute("SELECT count(*) FROM host_metrics").fetchone() == (samples,)
    assert times == list(range(times[0], times[0] + len(times)))


def wait_for_refused_commit(database: Path) -> None:
    """Wait for a commit that our lock prevents: meanwhile there is a journal beside the database."""
    journal = database.with_name(f"{database.name}-journal")
    deadline = time.monotonic() + WAIT_SECONDS
    while not journal.exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.slow
def test_an_export_uses_the_same_memory_whatever_the_size_of_the_database(tmp_path: Path) -> None:
    def peak_kb(path: Path) -> int:
        code = (
            "import resource, sys; from pathlib import Path; from collector.commands.export import export; "
            "export(Path(sys.argv[1]), None, force=False); "
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
        )
        ended = subprocess.run(
            [sys.executable, "-c", code, path], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True
        )
        return int(ended.stderr)

    rows = "INSERT INTO t SELECT 'some text ' || value FROM (WITH RECURSIVE n(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM n WHERE value < {}) SELECT value FROM n)"
    small = create(tmp_path / "small.db", f"CREATE TABLE t (a TEXT); {rows.format(10)}")
    large = create(tmp_path / "large.db", f"CREATE TABLE t (a TEXT); {rows.format(2_000_000)}")
    assert large.stat().st_size > 40 * 2**20
    assert peak_kb(large) < peak_kb(small) + 10_000


# The documented ways to restore, section 12.2.


def check_collector_continues(collector: Collector) -> None:
    """Check that a collector starts with the restored database and adds samples."""
    (before,) = collector.query("SELECT count(*) AS n FROM metrics")
    with collector:
        collector.wait_for(f"SELECT 1 FROM (SELECT count(*) AS n FROM metrics) WHERE n > {before['n']}")
        assert collector.stop() == 0
    with closing(sqlite3.connect(collector.database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def models(collector: Collector) -> list[dict[str, Any]]:
    return collector.query("SELECT * FROM models")


def test_a_copy_of_the_file_restores_the_database(collected: Collector, tmp_path: Path) -> None:
    before = models(collected)
    shutil.copy(collected.database, tmp_path / "copy.db")
    with Database(collected.database) as database:
        database.models.delete(before[0]["id"])
    shutil.copy(tmp_path / "copy.db", collected.database)
    assert models(collected) == before
    check_collector_continues(collected)


@pytest.mark.slow
@pytest.mark.parametrize("by", ["export", "the shell's .dump"])
def test_sql_text_restores_the_database(collected: Collector, by: str) -> None:
    before = models(collected)
    command = collected.command("export") if by == "export" else ["sqlite3", str(collected.database), ".dump"]
    text = subprocess.run(command, capture_output=True, check=True).stdout
    collected.database.unlink()
    import_by_shell(text, collected.database)
    assert models(collected) == before
    check_collector_continues(collected)


@pytest.mark.slow
def test_copying_rows_from_an_attached_backup_restores_a_table(collected: Collector, tmp_path: Path) -> None:
    before = models(collected)
    subprocess.run(["sqlite3", collected.database, f".backup {tmp_path / 'backup.db'}"], check=True)
    with Database(collected.database) as database:
        database.models.delete(before[0]["id"])
        database.models.save({"name": "another"})
    import_by_shell(
        f"ATTACH DATABASE '{tmp_path / 'backup.db'}' AS backup; BEGIN; DELETE FROM models; "
        "INSERT INTO models SELECT * FROM backup.models; COMMIT; DETACH DATABASE backup;".encode(),
        collected.database,
    )
    assert models(collected) == before
    check_collector_continues(collected)
