"""A reader in another process keeps the writer waiting: who it is, is told."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector import events
from collector.database import Database, lock_holders
from collector.database.buffer import Buffer, Retention
from collector.database.documented import LOGS
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
def told() -> Iterator[list[str]]:
    texts: list[str] = []
    events.configure("info", "console", lambda _, text: texts.append(text))
    yield texts
    events.configure("info", "console")


class Reader:
    """A process that holds a read transaction until it is told to end."""

    def __init__(self, database: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", READER, str(database)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout
        assert self._process.stdout.readline() == b"reading\n"
        self.pid = self._process.pid

    def end(self) -> None:
        self._process.communicate()


def refused(writer: Writer, buffer: Buffer) -> None:
    buffer.add([LOGS.insert(*[("info", "text", "collector", 1)])], Retention.KEPT)
    with pytest.raises(DatabaseBusy):
        writer.flush()


def test_a_reader_is_named_once_when_it_holds_on_for_long(
    database: Database, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = Buffer()
    writer = Writer(database, buffer)
    reader = Reader(database.path)
    refused(writer, buffer)
    assert told == []  # a short one is nobody's business
    monkeypatch.setattr(lock_holders, "LONG_SECONDS", 0)
    refused(writer, buffer)
    refused(writer, buffer)
    reader.end()
    (text,) = told
    assert f"process {reader.pid} (python" in text
    assert writer.flush() == 3
    another = Reader(database.path)
    refused(writer, buffer)
    another.end()
    assert f"process {another.pid} (python" in told[1]


def test_readers_that_let_go_are_not_named(database: Database) -> None:
    reader = Reader(database.path)
    lines = Path("/proc/locks").read_text().splitlines()
    reader.end()
    assert lock_holders.lock_holders(database.path.stat(), lines) == [reader.pid]
    lines = Path("/proc/locks").read_text().splitlines()
    assert lock_holders.lock_holders(database.path.stat(), lines) == []
