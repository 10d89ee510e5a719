"""Another process that holds a lock on a database."""

import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

WRITER = ("BEGIN IMMEDIATE",)
EXCLUSIVE = ("BEGIN EXCLUSIVE",)
READER = ("BEGIN", "SELECT count(*) FROM metrics")

_HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
for statement in sys.argv[2:]:
    connection.execute(statement).fetchall()
print("held", flush=True)
sys.stdin.read()
"""


class LockHolder:
    """A process that holds a lock during the `with` block.

    Args:
        database: path of the database.
        statements: the statements that acquire the lock.
    """

    def __init__(self, database: Path, statements: tuple[str, ...]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _HOLDER, str(database), *statements],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        assert self._process.stdout
        assert self._process.stdout.readline() == b"held\n"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()
