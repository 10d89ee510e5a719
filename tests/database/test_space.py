import sqlite3
from collections import namedtuple
from contextlib import closing
from pathlib import Path

import pytest

from collector.database import Database
from collector.database.deletion import count_rows, delete_oldest
from collector.database.documented import LOGS
from collector.database.space import RELEASE_PAGES, read_space, release_pages, rewrite
from collector.errors import DatabaseError


def test_a_file_of_the_collector_returns_its_free_pages_in_steps(database: Database) -> None:
    with database.transaction() as connection:
        rows = [("info", "x" * 1000, "test", 1)] * 5000
        connection.executemany(LOGS.insert_statement, rows)
    delete_oldest(database, "logs", 0)
    before = read_space(database)
    assert before.can_shrink
    release_pages(database)
    after = read_space(database)
    assert before.free_bytes - after.free_bytes == RELEASE_PAGES * before.page_bytes
    assert after.size_bytes == database.path.stat().st_size < before.size_bytes


@pytest.fixture
def foreign_file(tmp_path: Path) -> Path:
    """A database that another program created: it cannot return pages."""
    path = tmp_path / "foreign.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(LOGS.create_statement)
        connection.executemany(
            LOGS.insert_statement, [("info", "x" * 1000, "theirs", number) for number in range(5000)]
        )
        connection.commit()
    return path


def test_a_file_that_another_program_created_can_shrink_after_a_rewrite(foreign_file: Path) -> None:
    with Database(foreign_file) as database:
        assert not read_space(database).can_shrink
        delete_oldest(database, "logs", 100)
        size_bytes = read_space(database).size_bytes
        rewrite(database)
        after = read_space(database)
        assert after.can_shrink
        assert after.free_bytes == 0
        assert after.size_bytes < size_bytes / 10
        assert count_rows(database, "logs") == 100
        assert database.query("PRAGMA temp_store") == [{"temp_store": 2}]


def test_a_rewrite_is_not_started_without_enough_free_disk(
    foreign_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Usage = namedtuple("Usage", "free")  # noqa: PYI024
    monkeypatch.setattr("shutil.disk_usage", lambda _path: Usage(20 * 2**20))
    with Database(foreign_file) as database:
        with pytest.raises(DatabaseError, match=r"20 MB free.*needs 30 MB"):
            rewrite(database)
        assert not read_space(database).can_shrink
