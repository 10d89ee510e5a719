import time
from pathlib import Path

import pytest

from collector.database import Database
from collector.database.buffer import Buffer
from collector.database.file_watch import FileWatch, Replacement
from collector.database.writer import Writer
from collector.errors import DatabaseError, DatabaseReplaced


def test_the_same_file_is_accepted_whatever_is_written_into_it(tmp_path: Path) -> None:
    path = tmp_path / "d.db"
    path.write_text("a")
    watch = FileWatch(path)
    path.write_text("longer")
    watch.check_same_file()


def test_another_file_or_none_at_the_path_is_detected(tmp_path: Path) -> None:
    path, other = tmp_path / "d.db", tmp_path / "other.db"
    path.write_text("a")
    other.write_text("a")
    watch = FileWatch(path)
    path.rename(tmp_path / "old.db")
    with pytest.raises(DatabaseReplaced, match="is gone"):
        watch.check_same_file()
    other.rename(path)
    with pytest.raises(DatabaseReplaced, match="another file is at"):
        watch.check_same_file()
    (tmp_path / "old.db").rename(path)
    watch.check_same_file()


def test_a_file_is_used_once_it_has_not_changed_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    path = tmp_path / "d.db"
    replacement = Replacement(path, DatabaseError("gone"))
    now[0] += 3
    path.write_text("half of a cop")
    assert not replacement.is_ready()
    now[0] += 3.9
    assert not replacement.is_ready()
    now[0] += 0.2
    assert replacement.is_ready()


def test_the_writer_waits_for_what_appears_at_the_path_of_its_database(tmp_path: Path) -> None:
    with Database(tmp_path / "d.db") as database:
        writer = Writer(database, Buffer())
        database.path.rename(tmp_path / "moved.db")
        with pytest.raises(DatabaseReplaced):
            writer.flush(force=True)
        assert writer.replacement
        assert writer.replacement._path == database.path
        assert isinstance(writer.replacement.error, DatabaseReplaced)
        (tmp_path / "moved.db").rename(database.path)
        writer.flush(force=True)
        assert writer.replacement is None
