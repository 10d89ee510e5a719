import threading
from pathlib import Path

import pytest

from collector.database import Database
from collector.database.integrity_check import IntegrityCheck
from collector.errors import DatabaseDamaged
from tests.support.damage import damage


def filled(path: Path) -> Database:
    database = Database(path)
    with database.transaction() as connection:
        connection.executemany("INSERT INTO logs (level, message) VALUES ('info', ?)", [("x" * 50,)] * 2000)
    return database


def test_a_sound_file_is_checked_once(tmp_path: Path) -> None:
    reports: list[str] = []
    with filled(tmp_path / "d.db") as database:
        check = IntegrityCheck(database, threading.Event(), reports.append, is_due=True)
        check.run()
        check.run()
    assert (reports, check.is_due, check.damage) == (["ok"], False, None)


def test_damage_is_reported_with_its_file_and_stays_due(tmp_path: Path) -> None:
    reports: list[str] = []
    with filled(tmp_path / "d.db") as database:
        check = IntegrityCheck(database, threading.Event(), reports.append, is_due=True)
        damage(database.path)
        with pytest.raises(DatabaseDamaged, match=f"{database.path}: ") as failure:
            check.run()
    assert (reports, check.is_due, check.damage) == (["damaged"], True, failure.value)


def test_a_check_that_is_not_due_reads_nothing(tmp_path: Path) -> None:
    with filled(tmp_path / "d.db") as database:
        check = IntegrityCheck(database, threading.Event(), lambda _: None, is_due=False)
        damage(database.path)
        check.run()
    assert check.damage is None
