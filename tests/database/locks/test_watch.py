"""A reader in another process keeps the writer waiting for long: the process is logged."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector import events
from collector.database import Database
from collector.database.buffer import Buffer, Retention
from collector.database.documented import LOGS
from collector.database.locks import watch
from collector.database.locks.holders import lock_holders
from collector.database.writer import Writer
from collector.errors import DatabaseBusy

READER = """
import sqlite3, sys
connection = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True, isolation_level=None)
connection.execute("BEGIN")
connection.execute("SELECT count(*) FROM logs").fetchone()
print("reading", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def logged() -> Iterator[list[str]]:
    texts: list[str] = []
    events.configure("info", "console", lambda _, text: texts.append(text))
    yield texts
    events.configure("info", "console")


class Reader:
    """A process that holds a read transaction until `end`."""

    def __init__(self, database: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", READER, str(database)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout
        assert self._process.stdout.readline() == b"reading\n"
        self.pid = self._process.pid

    def end(self) -> None:
        self._process.communicate()


def flush_fails(writer: Writer, buffer: Buffer) -> None:
    buffer.add([LOGS.insert(*[("info", "text", "collector", 1)])], Retention.KEPT)
    with pytest.raises(DatabaseBusy):
        writer.flush()


def test_a_process_that_holds_a_lock_for_long_is_logged_once(
    database: Database, logged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = Buffer()
    writer = Writer(database, buffer)
    reader = Reader(database.path)
    flush_fails(writer, buffer)
    assert logged == []  # a short lock is normal
    monkeypatch.setattr(watch, "LONG_SECONDS", 0)
    flush_fails(writer, buffer)
    flush_fails(writer, buffer)
    reader.end()
    (text,) = logged
    assert f"process {reader.pid} (python" in text
    assert writer.flush() == 3
    another = Reader(database.path)
    flush_fails(writer, buffer)
    another.end()
    assert f"process {another.pid} (python" in logged[1]


def test_a_process_that_has_released_its_lock_is_not_named(database: Database) -> None:
    reader = Reader(database.path)
    lines = Path("/proc/locks").read_text().splitlines()
    reader.end()
    assert lock_holders(database.path.stat(), lines) == [reader.pid]
    lines = Path("/proc/locks").read_text().splitlines()
    assert lock_holders(database.path.stat(), lines) == []
