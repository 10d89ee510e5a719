import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

from collector.database import Database
from collector.database.buffer import Buffer, Retention
from collector.database.documented import LOGS, METADATA, METRICS
from collector.database.writer import Writer
from collector.errors import DatabaseBusy
from collector.schema import Write


def test_everything_that_waits_is_committed_in_one_transaction(database: Database) -> None:
    buffer = Buffer()
    buffer.add([METRICS.insert(METRICS.row({"cpu_usage": 1.5, "timestamp": 7}))], Retention.DROPPABLE)
    buffer.add(
        [LOGS.insert(*[("info", "line", "llama-server", 8)]), METADATA.replace(("position", "9", 8))],
        Retention.REREADABLE,
    )
    assert Writer(database, buffer).flush() == 3
    assert database.metrics.get_history()[0]["cpu_usage"] == 1.5
    assert database.logs.get_all()[0]["message"] == "line"
    assert database.meta.get("position") == 9


def test_without_rows_nothing_is_written(database: Database) -> None:
    written = database.query("PRAGMA data_version")
    with closing(sqlite3.connect(database.path)) as other:
        before = other.execute("PRAGMA data_version").fetchone()
        assert (
            Writer(database, Buffer(), lambda: Write("INSERT INTO metadata VALUES ('a', 1, 1)", [()])).flush()
            == 0
        )
        assert other.execute("PRAGMA data_version").fetchone() == before
    assert database.query("PRAGMA data_version") == written


def test_a_locked_database_keeps_the_rows_and_the_next_flush_writes_them_once(database: Database) -> None:
    buffer = Buffer()
    writer = Writer(database, buffer)
    buffer.add([METRICS.insert(METRICS.row({"timestamp": 1}))], Retention.DROPPABLE)
    with closing(sqlite3.connect(database.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(DatabaseBusy, match="another program holds a lock"):
            writer.flush()
        other.execute("ROLLBACK")
    buffer.add([METRICS.insert(METRICS.row({"timestamp": 2}))], Retention.DROPPABLE)
    assert writer.flush() == 2
    assert [row["timestamp"] for row in database.metrics.get_history()] == [2, 1]


def test_a_reader_in_a_transaction_only_delays_the_rows(database: Database) -> None:
    buffer = Buffer()
    writer = Writer(database, buffer)
    buffer.add([LOGS.insert(*[("info", "x", None, 1)])], Retention.KEPT)
    with closing(sqlite3.connect(database.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM logs").fetchone()
        with pytest.raises(DatabaseBusy):
            writer.flush()
        with closing(sqlite3.connect(database.path, timeout=0)) as another:
            assert another.execute("SELECT count(*) FROM logs").fetchone() == (0,)
        reader.execute("ROLLBACK")
    assert writer.flush() == 1


def test_a_row_that_does_not_fit_its_table_is_left_out_and_the_others_are_written(
    database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    buffer = Buffer()
    rows = ("info", "good", None, 1), ("info", None, None, 2), ("info", "good too", None, 3)
    buffer.add([LOGS.insert(*rows)], Retention.KEPT)
    Writer(database, buffer).flush()
    assert [row["message"] for row in database.logs.get_all()] == ["good too", "good"]
    assert "do not fit" in capsys.readouterr().out


def test_dropped_samples_are_logged_once(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    buffer = Buffer(sample_capacity=1)
    writer = Writer(database, buffer)
    buffer.add([METRICS.insert(*(METRICS.row({"timestamp": n}) for n in range(3)))], Retention.DROPPABLE)
    writer.flush()
    buffer.add([METRICS.insert(METRICS.row({"timestamp": 9}))], Retention.DROPPABLE)
    writer.flush()
    assert capsys.readouterr().out.count("oldest samples were dropped") == 1


def test_two_flushes_at_once_commit_in_the_order_in_which_the_rows_came(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = Buffer()
    writer = Writer(database, buffer)
    commit = writer._commit
    first_is_committing, second_commits = threading.Event(), threading.Event()

    def slow_commit(*arguments: Any) -> Any:
        if first_is_committing.is_set():
            second_commits.set()
        else:
            first_is_committing.set()
            second_commits.wait(0.5)  # it cannot come while the first flush has the lock
        return commit(*arguments)

    monkeypatch.setattr(writer, "_commit", slow_commit)
    buffer.add([LOGS.insert(("info", "first", None, 1))], Retention.KEPT)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(writer.flush)
        assert first_is_committing.wait(10)
        buffer.add([LOGS.insert(("info", "second", None, 2))], Retention.KEPT)
        assert pool.submit(writer.flush).result(10) == 1
        assert first.result(10) == 1
    assert [row["message"] for row in database.query("SELECT message FROM logs ORDER BY id")] == [
        "first",
        "second",
    ]
