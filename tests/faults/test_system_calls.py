"""Each system call with which the collector changes a file: it is killed there, or the call fails."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from collector.catalog import OWN_TABLES
from collector.database import Database
from tests.support.scripted_minute import LINES, OLD_ROWS, ROUNDS

CALLS = ("pwrite64", "fdatasync", "fsync", "unlink", "rename", "ftruncate", "mkdir", "chmod", "chown")
MOST_TRIED = 60  # of one call, evenly spread


class Minute:
    """A directory with a database and a log before the scripted minute, and checks of what follows.

    Args:
        directory: an empty directory.
    """

    def __init__(self, directory: Path) -> None:
        self.database, self.log = directory / "data" / "minute.db", directory / "llama.log"
        with Database(self.database, OWN_TABLES) as database, database.transaction() as connection:
            rows = [("info", f"old {number}", "old", 0) for number in range(OLD_ROWS)]
            connection.executemany(
                "INSERT INTO logs (level, message, source, timestamp) VALUES (?, ?, ?, ?)", rows
            )
        self.log.write_text(
            "".join(f"0.00.{number:03}.000 I srv  line {number}\n" for number in range(LINES))
        )
        os.utime(self.log, (1_700_000_000, 1_700_000_000))

    def run(self, *strace: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tests.support.scripted_minute", str(self.database), str(self.log)]
        return subprocess.run([*strace, *command], capture_output=True, text=True, check=False)

    def check_acknowledged(self, output: str) -> None:
        """Check that the acknowledged rows are in the database."""
        with closing(sqlite3.connect(self.database)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            present = {number for (number,) in connection.execute("SELECT timestamp FROM metrics")}
        assert {int(line) for line in output.split()} <= present

    def check_end(self) -> None:
        """Check that each row is in database and backup once, and that no other file remains."""
        (backup,) = (self.database.parent / "backup").iterdir()
        for path in (self.database, backup):
            with closing(sqlite3.connect(path)) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
                rounds = connection.execute("SELECT timestamp FROM metrics ORDER BY id").fetchall()
                lines = connection.execute(
                    "SELECT message FROM logs WHERE source = 'llama-server'"
                ).fetchall()
            assert [number for (number,) in rounds] == list(range(ROUNDS + 1))
            assert Counter(lines) == Counter((f"srv  line {number}",) for number in range(LINES))
        names = {path.name for path in self.database.parent.iterdir()}
        assert names == {"minute.db", "minute.db.lock", "backup"}


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Counter[str]:
    """Return how often each of the calls happens in an undisturbed minute."""
    directory = tmp_path_factory.mktemp("undisturbed")
    minute, trace = Minute(directory), directory / "trace"
    ended = minute.run(
        "strace", "-f", "--seccomp-bpf", "-qq", "-o", str(trace), "-e", f"trace={','.join(CALLS)}"
    )
    assert ended.returncode == 0, ended.stderr
    minute.check_end()
    return Counter(re.findall(r"^\d+ +(\w+)\(", trace.read_text(), re.MULTILINE))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("fault", ["signal=KILL", "error=ENOSPC", "error=EIO"])
@pytest.mark.parametrize("call", CALLS)
def test_whichever_call_fails_or_is_the_last_no_acknowledged_row_is_lost_and_none_is_doubled(
    tmp_path: Path, counted: Counter[str], call: str, fault: str
) -> None:
    assert counted[call]
    for number in range(1, counted[call] + 1, max(1, counted[call] // MOST_TRIED)):
        minute = Minute(tmp_path / str(number))
        inject = f"inject={call}:{fault}:when={number}"
        ended = minute.run("strace", "-f", "--seccomp-bpf", "-qq", "-o", os.devnull, "-e", inject)
        minute.check_acknowledged(ended.stdout)
        again = minute.run()
        assert again.returncode == 0, f"{inject}: {again.stderr}"
        minute.check_end()
        shutil.rmtree(tmp_path / str(number))
