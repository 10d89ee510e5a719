"""A real collector in a process of its own."""

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

WAIT_SECONDS = 40


class Collector:
    """`llama-collector run` with a database of its own, during the `with` block.

    Args:
        directory: directory of settings and database.
        settings: TOML text without the path of the database.
        environment: environment of the process; None for that of the test.
    """

    def __init__(
        self, directory: Path, settings: str = "", environment: Mapping[str, str] | None = None
    ) -> None:
        self.database = directory / "data" / "llama-dashboard.db"
        self.settings_file = directory / "collector.toml"
        if "[database]" not in settings:
            settings = f'[database]\npath = "{self.database}"\nflush_interval = 1\n{settings}'
        self.settings_file.write_text(settings)
        self._environment = environment
        self.process: subprocess.Popen[str] | None = None
        self.output = ""

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "collector", "--config", str(self.settings_file), *arguments]

    def start(self) -> Self:
        self.process = subprocess.Popen(
            self.command("run"), stderr=subprocess.PIPE, text=True, env=self._environment
        )
        return self

    def stop(self, ending: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, wait for the end of the process, and return its exit code."""
        assert self.process
        self.process.send_signal(ending)
        _, self.output = self.process.communicate(timeout=WAIT_SECONDS)
        return self.process.returncode

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another command with the same settings."""
        return subprocess.run(
            self.command(*arguments), capture_output=True, text=True, check=False, env=self._environment
        )

    def query(self, statement: str) -> list[dict[str, Any]]:
        """Return rows as another program reads them; none before the table exists."""
        if not self.database.exists():
            return []
        with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=5)) as reader:
            reader.row_factory = sqlite3.Row
            try:
                return [dict(row) for row in reader.execute(statement)]
            except sqlite3.OperationalError as error:
                if "no such table" in str(error):
                    return []
                raise

    def wait_for(self, statement: str, seconds: float = WAIT_SECONDS) -> list[dict[str, Any]]:
        """Poll, as any dashboard does, until the statement returns a row."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if rows := self.query(statement):
                return rows
            if self.process and self.process.poll() is not None:
                raise AssertionError(f"the collector ended: {self.process.communicate()[1]}")
            time.sleep(0.02)
        raise AssertionError(
            f"no row in {seconds} s: {statement}: {self.query('SELECT * FROM collector_health')}"
        )

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
