import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from collector.database import Database
from collector.database.connection import connect_for_copy, connect_for_writing, connect_read_only
from collector.database.locks.collector_lock import running_collector
from collector.errors import DatabaseBusy, DatabaseError, DatabaseInUse

UNPRIVILEGED = 65534


def create_database(path: Path, rows: int = 2000) -> Path:
    with Database(path) as database, database.transaction() as connection:
        connection.executemany("INSERT INTO logs (level, message) VALUES ('info', ?)", [("x" * 50,)] * rows)
    return path


def test_a_file_that_is_no_database_is_refused_and_untouched(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("dear diary\n" * 100)
    before = path.read_bytes()
    with pytest.raises(DatabaseError, match=r"it is no SQLite database. Name another file"):
        Database(path)
    assert path.read_bytes() == before


def test_a_damaged_database_is_refused_and_untouched(tmp_path: Path) -> None:
    path = create_database(tmp_path / "damaged.db")
    content = bytearray(path.read_bytes())
    content[4096 * 20 : 4096 * 30] = os.urandom(4096 * 10)
    path.write_bytes(content)
    with pytest.raises(DatabaseError, match=r"damaged.*backup"):
        Database(path)
    assert path.read_bytes() == bytes(content)


def test_a_truncated_database_is_refused_and_untouched(tmp_path: Path) -> None:
    path = create_database(tmp_path / "truncated.db")
    content = path.read_bytes()[: 4096 * 9 + 100]
    path.write_bytes(content)
    with pytest.raises(DatabaseError, match="damaged"):
        Database(path)
    assert path.read_bytes() == content


def test_a_directory_at_the_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="is a directory"):
        Database(tmp_path)


READ_AS_ANOTHER_USER = f"""
import os, sqlite3, sys
if os.getuid() == 0:
    os.setgroups([]); os.setgid({UNPRIVILEGED}); os.setuid({UNPRIVILEGED})
connection = sqlite3.connect("file:" + sys.argv[1] + "?mode=ro", uri=True)
print(connection.execute("SELECT count(*) FROM logs").fetchone()[0])
"""


def read_as_another_user(path: Path) -> str:
    command = [sys.executable, "-c", READ_AS_ANOTHER_USER, str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    return ended.stdout + ended.stderr


def test_a_read_only_file_is_refused_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = create_database(tmp_path / "read-only.db", rows=1)
    path.chmod(0o444)
    real_access = os.access  # root may write everything: answer as for another user
    monkeypatch.setattr(
        os, "access", lambda p, mode: real_access(p, mode) and not (p == path and mode == os.W_OK)
    )
    before = path.read_bytes()
    with pytest.raises(DatabaseError, match=r"cannot be written.*Change their owner or mode"):
        Database(path)
    assert path.read_bytes() == before


def test_another_user_reads_the_file_while_the_collector_has_it_open_and_afterwards(
    public_path: Path,
) -> None:
    path = public_path / "shared.db"
    with Database(path) as database:
        database.logs.add("info", "x")
        assert read_as_another_user(path) == "1\n"
    assert read_as_another_user(path) == "1\n"


def test_no_journal_remains_beside_the_database(tmp_path: Path) -> None:
    path = create_database(tmp_path / "d" / "clean.db")
    assert {file.name for file in path.parent.iterdir()} == {"clean.db", "clean.db.lock"}


def test_a_second_collector_is_refused_with_the_id_of_the_first_process(database: Database) -> None:
    with pytest.raises(DatabaseInUse, match=rf"process {os.getpid()}\)"):
        Database(database.path)


def test_a_symbolic_link_does_not_bypass_the_lock(database: Database, tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(database.path)
    with pytest.raises(DatabaseInUse):
        Database(link)


def test_the_lock_is_released_with_its_database(tmp_path: Path) -> None:
    path = create_database(tmp_path / "x.db")
    assert running_collector(path) is None
    with Database(path):
        assert running_collector(path) == os.getpid()
    assert running_collector(path) is None


def test_a_database_in_wal_mode_is_converted(tmp_path: Path) -> None:
    path = create_database(tmp_path / "wal.db", rows=3)
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA journal_mode = WAL")
    with Database(path) as database:
        assert database.query("PRAGMA journal_mode") == [{"journal_mode": "delete"}]
        assert database.query("SELECT count(*) AS n FROM logs") == [{"n": 3}]


def test_a_wal_database_that_another_program_has_open_is_refused_with_advice(tmp_path: Path) -> None:
    path = create_database(tmp_path / "wal.db", rows=3)
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("SELECT count(*) FROM logs").fetchone()
        with pytest.raises((DatabaseError, DatabaseBusy), match=r"lock|journal mode"):
            Database(path)


def test_a_read_only_connection_cannot_write(tmp_path: Path) -> None:
    path = create_database(tmp_path / "x.db", rows=1)
    with (
        closing(connect_read_only(path)) as connection,
        pytest.raises(sqlite3.OperationalError, match="readonly"),
    ):
        connection.execute("DELETE FROM logs")


def test_opening_a_missing_database_read_only_does_not_create_it(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="start the collector first"):
        connect_read_only(tmp_path / "missing.db")
    assert list(tmp_path.iterdir()) == []


def test_a_path_with_odd_characters_works(tmp_path: Path) -> None:
    path = create_database(tmp_path / "ü ?#% &.db", rows=1)
    with closing(connect_read_only(path)) as connection:
        assert connection.execute("SELECT count(*) FROM logs").fetchone() == (1,)


@pytest.mark.parametrize("opened", ["read-only", "restored"])
def test_the_schema_of_a_file_from_elsewhere_is_not_trusted(tmp_path: Path, opened: str) -> None:
    path = create_database(tmp_path / "d.db", rows=1)
    with closing(sqlite3.connect(path)) as hostile:
        hostile.execute("CREATE VIEW hostile AS SELECT launch() AS one")
    connect = connect_read_only if opened == "read-only" else partial(connect_for_writing, is_own=False)
    with closing(connect(path)) as connection:
        connection.create_function("launch", 0, lambda: 1)
        assert connection.execute("SELECT launch()").fetchone() == (1,)
        with pytest.raises(sqlite3.OperationalError, match=r"unsafe use of launch\(\)"):
            connection.execute("SELECT * FROM hostile").fetchone()


def test_a_copy_is_a_new_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    connect_for_copy(tmp_path / "copy.db").close()
    assert (tmp_path / "copy.db").stat().st_mode & 0o777 == 0o600
    with pytest.raises(DatabaseError, match="cannot be created: File exists"):
        connect_for_copy(tmp_path / "copy.db")
