"""Fixtures that more than one room of the tests uses."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.database import Database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(tmp_path / "data" / "llama-dashboard.db") as opened:
        yield opened
