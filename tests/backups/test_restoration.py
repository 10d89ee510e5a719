import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from collector.backups.restoration import prepare_restore
from collector.catalog import OWN_TABLES, VIEWS
from collector.database import Database
from collector.errors import DatabaseDamaged


def test_a_backup_whose_index_contradicts_its_rows_is_refused(tmp_path: Path) -> None:
    """The fast check, which opening a database for writing makes, does not compare indexes with rows."""
    backup = tmp_path / "backup.db"
    with Database(backup, OWN_TABLES, VIEWS) as database, database.transaction() as connection:
        connection.executemany(
            "INSERT INTO logs (level, message, source) VALUES ('info', ?, 'x')",
            [(str(n),) for n in range(50)],
        )
        connection.execute("CREATE INDEX idx_mine ON logs (message)")
    with closing(sqlite3.connect(backup, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            "UPDATE sqlite_master SET sql = 'CREATE INDEX idx_mine ON logs (source)' WHERE name = 'idx_mine'"
        )
    with closing(sqlite3.connect(backup)) as connection:
        assert connection.execute("PRAGMA quick_check").fetchone() == ("ok",)
    target = tmp_path / "restored.db"
    with pytest.raises(DatabaseDamaged, match="damaged"):
        prepare_restore(backup, target, OWN_TABLES, VIEWS, lambda *_: None)
    assert not target.exists()
