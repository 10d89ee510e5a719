import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from collector.catalog import OWN_TABLES
from collector.database import Database
from collector.database.connection import transaction
from collector.database.documented import DOCUMENTED_TABLES
from collector.database.migrations import migrate, refresh_views
from collector.errors import DatabaseError
from collector.schema import Column, Index, Table, View, ViewColumn
from collector.views import VIEWS

DOCUMENTED_SCHEMA = (Path(__file__).parent / "documented_schema.sql").read_text()
DOCUMENTED_INDEXES = {
    ("idx_models_status", "models", "status"),
    ("idx_models_name", "models", "name"),
    ("idx_models_created", "models", "created_at DESC"),
    ("idx_metrics_timestamp", "metrics", "timestamp DESC"),
    ("idx_logs_timestamp", "logs", "timestamp DESC"),
    ("idx_logs_source", "logs", "source"),
    ("idx_logs_level", "logs", "level"),
    ("idx_metadata_key", "metadata", "key"),
}
DOCUMENTED_NAMES = ("models", "metrics", "logs", "server_config", "metadata")
ADDED_IN_1_1 = (
    "embedding_size",
    "block_count",
    "head_count",
    "head_count_kv",
    "ffn_dim",
    "file_type",
    "favorite",
)
ADDED_IN_1_2 = ("gpu_usage", "gpu_memory_used", "gpu_memory_total", "swap_usage")
OUR_TABLES = (*DOCUMENTED_TABLES, *OWN_TABLES)


def columns_of(connection: sqlite3.Connection, table: str) -> list[tuple[object, ...]]:
    """Name, type, not-null, default and primary key of each column, in order."""
    return [tuple(row[1:]) for row in connection.execute(f"PRAGMA table_info({table})")]


def without(schema: str, *columns: str) -> str:
    for column in columns:
        schema = re.sub(rf"^  {column} .*\n", "", schema, flags=re.MULTILINE)
    return schema


VERSIONS = {
    "initial": without(DOCUMENTED_SCHEMA, *ADDED_IN_1_1, *ADDED_IN_1_2),
    "1.1": without(DOCUMENTED_SCHEMA, *ADDED_IN_1_2),
    "1.2": DOCUMENTED_SCHEMA,
    "1.2 without swap": without(DOCUMENTED_SCHEMA, "swap_usage"),
}


def old_database(path: Path, schema: str) -> None:
    """Create a database as another program left it, with rows and with tables and columns of its own."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(schema)
        connection.executescript(
            """
            ALTER TABLE models ADD COLUMN their_note TEXT;
            CREATE TABLE their_table (x);
            INSERT INTO their_table VALUES (7);
            INSERT INTO models (id, name, created_at, their_note) VALUES ('model_1_aaaaaaaaa', 'old', 5, 'mine');
            INSERT INTO metrics (cpu_usage, timestamp) VALUES (12.5, 100), (NULL, 101);
            INSERT INTO logs (level, message) VALUES ('info', 'hello');
            INSERT INTO metadata VALUES ('k', '[1]', 3);
            """
        )


def test_a_new_database_has_the_documented_columns_in_their_order(tmp_path: Path) -> None:
    Database(tmp_path / "ours.db").close()
    with (
        closing(sqlite3.connect(tmp_path / "ours.db")) as ours,
        closing(sqlite3.connect(":memory:")) as documented,
    ):
        documented.executescript(DOCUMENTED_SCHEMA)
        for table in DOCUMENTED_NAMES:
            assert columns_of(ours, table) == columns_of(documented, table)


def test_a_new_database_has_the_eight_documented_indexes_and_no_other_on_those_tables(tmp_path: Path) -> None:
    Database(tmp_path / "ours.db").close()
    with closing(sqlite3.connect(tmp_path / "ours.db")) as ours:
        found = {
            (name, table, sql[sql.index("(") + 1 : -1])
            for name, table, sql in ours.execute(
                "SELECT name, tbl_name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
            )
        }
    assert found == DOCUMENTED_INDEXES


def test_the_directory_of_the_database_is_created(tmp_path: Path) -> None:
    Database(tmp_path / "a" / "b" / "c.db").close()
    assert (tmp_path / "a" / "b" / "c.db").is_file()


def test_the_database_uses_the_documented_page_size_encoding_and_journal(database: Database) -> None:
    for pragma, expected in (("page_size", 4096), ("encoding", "UTF-8"), ("journal_mode", "delete")):
        assert next(iter(database.query(f"PRAGMA {pragma}")[0].values())) == expected


@pytest.mark.parametrize("version", VERSIONS)
def test_every_documented_version_is_migrated_and_loses_nothing(tmp_path: Path, version: str) -> None:
    old_database(tmp_path / "old.db", VERSIONS[version])
    with Database(tmp_path / "old.db", OWN_TABLES) as database:
        model = database.models.get_by_id("model_1_aaaaaaaaa")
        assert model is not None
        assert (model["name"], model["created_at"], model["their_note"]) == ("old", 5, "mine")
        assert (model["favorite"], model["embedding_size"]) == (0, 0)
        assert [row["cpu_usage"] for row in database.metrics.get_history()] == [None, 12.5]
        assert [row["swap_usage"] for row in database.metrics.get_history()] == [0, 0]
        assert database.query("SELECT x FROM their_table") == [{"x": 7}]
        assert database.meta.get("k") == [1]
    with closing(sqlite3.connect(tmp_path / "old.db")) as connection:
        for table in OUR_TABLES:
            names = {column[0] for column in columns_of(connection, table.name)}
            assert names >= {column.name for column in table.columns}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_second_migration_changes_nothing(tmp_path: Path, version: str) -> None:
    old_database(tmp_path / "old.db", VERSIONS[version])
    Database(tmp_path / "old.db").close()
    with Database(tmp_path / "old.db") as database:
        assert database.changes == []


def test_a_database_that_is_up_to_date_is_opened_without_writing_into_it(tmp_path: Path) -> None:
    Database(tmp_path / "d.db", OWN_TABLES).close()
    with (
        closing(sqlite3.connect(tmp_path / "d.db", isolation_level=None)) as other,
        closing(sqlite3.connect(tmp_path / "d.db", isolation_level=None, timeout=0)) as connection,
    ):
        other.execute("BEGIN IMMEDIATE")  # from now on nobody else can begin a transaction that writes
        assert list(migrate(connection, (*DOCUMENTED_TABLES, *OWN_TABLES))) == []


def test_what_is_added_is_reported(tmp_path: Path) -> None:
    old_database(tmp_path / "old.db", VERSIONS["1.1"])
    with Database(tmp_path / "old.db") as database:
        assert "added column metrics.swap_usage" in database.changes
        assert not any("models" in change and "column" in change for change in database.changes)


def test_after_an_interruption_at_any_statement_the_next_start_completes_the_migration(
    tmp_path: Path,
) -> None:
    statements = 0

    class Stop(Exception):  # noqa: N818
        pass

    def interrupting(allowed: int) -> Callable[[int, str | None, str | None, str | None, str | None], int]:
        def authorize(*_: object) -> int:
            nonlocal statements
            statements += 1
            return sqlite3.SQLITE_OK if statements <= allowed else sqlite3.SQLITE_DENY

        return authorize

    for allowed in range(0, 4000, 97):
        path = tmp_path / f"{allowed}.db"
        old_database(path, VERSIONS["initial"])
        statements = 0
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.set_authorizer(interrupting(allowed))
            try:
                list(migrate(connection, OUR_TABLES))
                finished = True
            except (sqlite3.DatabaseError, DatabaseError):
                finished = False
        with Database(path, OUR_TABLES[5:]) as database:
            assert bool(database.changes) is not finished
            assert len(database.metrics.get_history()) == 2
        if finished:
            break
    else:
        pytest.fail("the migration did not end")


def test_a_table_for_another_purpose_is_refused_before_anything_changes(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE logs (whatever TEXT)")
    before = path.read_bytes()
    with pytest.raises(DatabaseError, match=r"logs has no column id.*another program"):
        Database(path)
    assert path.read_bytes() == before


def test_a_view_with_the_name_of_a_table_is_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "view.db")) as connection:
        connection.execute("CREATE VIEW metrics AS SELECT 1 AS id")
    with pytest.raises(DatabaseError, match="metrics is a view"):
        Database(tmp_path / "view.db")


def test_our_database_can_be_used_by_a_program_written_from_the_document(tmp_path: Path) -> None:
    """Run its statements, as chapters 9 and 11 imply them, on a file that we created."""
    Database(tmp_path / "ours.db").close()
    with closing(sqlite3.connect(tmp_path / "ours.db", isolation_level=None)) as theirs, transaction(theirs):
        theirs.execute("INSERT INTO models (id, name) VALUES ('m', 'x')")
        theirs.execute(
            "INSERT INTO metrics (cpu_usage, memory_usage, disk_usage, active_models, uptime) "
            "VALUES (25, 40, 45, 1, 100)"
        )
        (timestamp,) = theirs.execute("SELECT timestamp FROM metrics").fetchone()
        assert isinstance(timestamp, int)
        assert theirs.execute("SELECT ctx_size, threads FROM models").fetchone() == (4096, 4)


def numbers(*, indexes: tuple[Index, ...] = (), retired_indexes: tuple[str, ...] = ()) -> Table:
    column = Column("x", "INTEGER", "gauge", "a number")
    return Table("numbers", "Numbers.", (column,), indexes, retired_indexes)


def indexes_of(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
        return {name for (name,) in found} - {index for index, _, _ in DOCUMENTED_INDEXES}


def test_an_index_that_is_retired_is_dropped_once(tmp_path: Path) -> None:
    old, new = Index("idx_old", "x"), Index("idx_new", "x DESC")
    Database(tmp_path / "ours.db", [numbers(indexes=(old,))]).close()
    assert indexes_of(tmp_path / "ours.db") == {"idx_old"}
    table = numbers(indexes=(new,), retired_indexes=("idx_old", "idx_that_never_was"))
    with Database(tmp_path / "ours.db", [table]) as database:
        assert database.changes == ["added index idx_new", "dropped index idx_old"]
    assert indexes_of(tmp_path / "ours.db") == {"idx_new"}
    with Database(tmp_path / "ours.db", [table]) as database:
        assert database.changes == []


def test_an_index_of_another_table_with_a_retired_name_is_left_alone(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "theirs.db")) as theirs:
        theirs.execute("CREATE TABLE their_table (x)")
        theirs.execute("CREATE INDEX idx_old ON their_table (x)")
    Database(tmp_path / "theirs.db", [numbers(retired_indexes=("idx_old",))]).close()
    assert indexes_of(tmp_path / "theirs.db") == {"idx_old"}


def view(expression: str, name: str = "answer") -> View:
    return View(name, "What is the answer?", (ViewColumn("it", expression, "the answer"),), "FROM metadata")


def views_of(path: Path) -> dict[str, str]:
    with closing(sqlite3.connect(path)) as connection:
        return dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'view'"))


def test_a_view_whose_sql_has_changed_is_replaced(tmp_path: Path) -> None:
    Database(tmp_path / "ours.db", views=[view("41")]).close()
    with Database(tmp_path / "ours.db", views=[view("42")]) as database:
        assert database.changes == ["wrote view answer"]
    assert views_of(tmp_path / "ours.db") == {"answer": view("42").create_statement}


def test_views_that_are_up_to_date_are_not_written(tmp_path: Path) -> None:
    Database(tmp_path / "ours.db", OWN_TABLES, VIEWS).close()
    before = (tmp_path / "ours.db").read_bytes()
    with Database(tmp_path / "ours.db", OWN_TABLES, VIEWS) as database:
        assert database.changes == []
    assert (tmp_path / "ours.db").read_bytes() == before


def test_views_of_other_programs_stay(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "theirs.db")) as theirs:
        theirs.execute("CREATE VIEW their_view AS SELECT 7 AS x")
    with Database(tmp_path / "theirs.db", views=[view("42")]) as database:
        assert database.query("SELECT x FROM their_view") == [{"x": 7}]


@pytest.mark.parametrize("made", ["CREATE VIEW Answer AS SELECT 7 AS x", "CREATE TABLE answer (x DEFAULT 7)"])
def test_what_another_program_created_with_the_name_of_a_view_stays_and_is_reported(
    tmp_path: Path, made: str
) -> None:
    with closing(sqlite3.connect(tmp_path / "theirs.db")) as theirs:
        theirs.execute(made)
    with Database(tmp_path / "theirs.db", views=[view("42"), view("43", "other")]) as database:
        (reported,) = [change for change in database.changes if "answer" in change]
        assert reported == "left out view answer: another program has created something with that name"
        assert [row["name"] for row in database.query("PRAGMA table_info(answer)")] == ["x"]
    assert views_of(tmp_path / "theirs.db")["other"]


def test_after_an_interruption_all_views_are_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "ours.db"
    Database(path, views=[view("1"), view("1", "other")]).close()
    before = views_of(path)

    def deny_the_last(action: int, name: str | None, *_: object) -> int:
        denied = action == sqlite3.SQLITE_CREATE_VIEW and name == "other"
        return sqlite3.SQLITE_DENY if denied else sqlite3.SQLITE_OK

    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.set_authorizer(deny_the_last)
        with pytest.raises(DatabaseError):
            list(refresh_views(connection, [view("2"), view("2", "other")]))
    assert views_of(path) == before
