"""A database with a few samples, and the directory of its backups."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.backups.directory import BackupDirectory
from collector.catalog import OWN_TABLES
from collector.database import Database
from collector.views import VIEWS


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(tmp_path / "data" / "llama-dashboard.db", OWN_TABLES, VIEWS) as database:
        for number in range(50):
            database.metrics.save({"cpu_usage": number, "timestamp": number})
        yield database


@pytest.fixture
def directory(database: Database, tmp_path: Path) -> BackupDirectory:
    return BackupDirectory(tmp_path / "data" / "backup", database.path)
