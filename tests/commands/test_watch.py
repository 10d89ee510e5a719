"""`status --watch` on a real pseudo-terminal."""

import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from collector.catalog import OWN_TABLES
from collector.cli import main
from collector.commands.watch import sparkline
from collector.database import Database
from collector.database.documented import LOGS, METRICS
from collector.schema import Table
from collector.sources.gpu.source import GPU_METRICS
from collector.sources.host import HOST_METRICS
from collector.sources.llama.metrics import LLAMA_METRICS

WAIT_SECONDS = 20
ENTERED, LEFT = "\x1b[?1049h\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h\x1b[?1049l"
NEVER, EACH_SECOND = 3600, 1


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, command: list[str], *, rows: int = 40, columns: int = 120) -> None:
        self.text = ""
        self.master, self.slave = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            command,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm", "PYTHONUTF8": "1"},
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - so that keys become signals
        )

    def resize(self, rows: int, columns: int) -> None:
        termios.tcsetwinsize(self.master, (rows, columns))

    def press(self, key: str) -> None:
        os.write(self.master, key.encode())

    def wait_for(self, text: str) -> str:
        """Read until a text appears; return what was read since the last call."""
        deadline, seen = time.monotonic() + WAIT_SECONDS, ""
        while text not in seen:
            assert select.select([self.master], [], [], deadline - time.monotonic())[0], (text, seen)
            seen += os.read(self.master, 65_536).decode()
        self.text += seen
        return seen

    def end(self) -> int:
        """Wait until the command has ended and all its output is read; return its exit code."""
        while self.process.poll() is None or select.select([self.master], [], [], 0)[0]:
            if select.select([self.master], [], [], 0.02)[0]:
                self.text += os.read(self.master, 65_536).decode()
        return self.process.returncode

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(tmp_path / "watch.db", OWN_TABLES) as opened:
        now = int(time.time())
        for age, share in ((15, 0.0), (10, 50.0), (5, 100.0)):
            moment = now - age
            insert(opened, METRICS, timestamp=moment, cpu_usage=share, uptime=60.0)
            insert(opened, HOST_METRICS, timestamp=moment, cpu_usage=share)
            insert(opened, GPU_METRICS, timestamp=moment, gpu_index=0, uuid="GPU-0", gpu_usage=100 - share)
            speed = 40.0 if share else None
            insert(opened, LLAMA_METRICS, timestamp=moment, model="tiny", predicted_tokens_per_second=speed)
        yield opened


def insert(database: Database, table: Table, **values: Any) -> None:
    with database.transaction() as connection:
        connection.execute(table.insert_statement, table.row(values))


def watch_command(database: Path, interval: int) -> list[str]:
    settings = database.with_suffix(".toml")
    settings.write_text(f'[database]\npath = "{database}"\n[sampling]\ninterval = {interval}\n')
    return [sys.executable, "-m", "collector", "--config", str(settings), "status", "--watch"]


def test_each_reading_has_its_history_in_which_unknown_values_are_blank(database: Database) -> None:
    with Terminal(watch_command(database.path, NEVER)) as terminal:
        frame = terminal.wait_for("busy, 0 to 100 %")
    assert " ▁▅█  cpu, 0 to 100 %" in frame
    assert "  ██  tokens/s, highest 40.0" in frame
    assert " █▅▁  busy, 0 to 100 %" in frame


def test_gpus_with_the_same_number_have_their_own_history_and_their_bus_address(database: Database) -> None:
    """Each vendor's driver counts from 0."""
    (newest,) = database.query("SELECT max(timestamp) AS at FROM metrics")
    other = {"gpu_index": 0, "uuid": None, "vendor": "amd", "bus_address": "0000:0a:00.0", "name": "Radeon"}
    insert(database, GPU_METRICS, timestamp=newest["at"], gpu_usage=100.0, **other)
    with Terminal(watch_command(database.path, NEVER)) as terminal:
        frame = terminal.wait_for("   █  busy, 0 to 100 %")
    assert "Radeon 0000:0a:00.0" in frame
    assert " █▅▁  busy, 0 to 100 %" in frame


def test_the_screen_is_drawn_anew_after_each_interval(database: Database) -> None:
    with Terminal(watch_command(database.path, EACH_SECOND)) as terminal:
        terminal.wait_for("▁▅█  cpu")
        now = int(time.time())
        insert(database, METRICS, timestamp=now, uptime=60.0)
        insert(database, HOST_METRICS, timestamp=now, cpu_usage=50.0)
        assert terminal.wait_for("▁▅█▅  cpu")
        insert(database, LOGS, level="error", message="out of memory", source="tiny", timestamp=now)
        terminal.wait_for("tiny: out of memory")


@pytest.mark.parametrize("ending", ["\x03", signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_restored_at_the_end(database: Database, ending: str | signal.Signals) -> None:
    with Terminal(watch_command(database.path, NEVER)) as terminal:
        terminal.wait_for("cpu, 0 to 100 %")
        assert termios.tcgetattr(terminal.slave) != terminal.before
        if isinstance(ending, str):
            terminal.press(ending)
        else:
            terminal.process.send_signal(ending)
        assert terminal.end() == 0
        assert termios.tcgetattr(terminal.slave) == terminal.before
    assert terminal.text.startswith(ENTERED)
    assert terminal.text.endswith(LEFT)
    assert "Traceback" not in terminal.text


def test_a_new_size_of_the_terminal_is_filled_at_once_and_never_exceeded(database: Database) -> None:
    with Terminal(watch_command(database.path, NEVER), rows=30) as terminal:
        terminal.wait_for("cpu, 0 to 100 %")
        terminal.resize(6, 50)
        terminal.wait_for("newest sample")
        terminal.resize(50, 200)
        terminal.wait_for("cpu, 0 to 100 %")
        while terminal.text.rsplit("\x1b[H", 1)[1].count("\n") < 49:
            terminal.wait_for("\n")
    frames = terminal.text.split("\x1b[H")[1:]
    assert [frame.count("\n") for frame in frames] == [29, 5, 49]


def test_ctrl_z_restores_the_screen_until_the_command_continues(database: Database) -> None:
    with Terminal(watch_command(database.path, NEVER)) as terminal:
        terminal.wait_for("cpu, 0 to 100 %")
        terminal.press("\x1a")
        terminal.wait_for(LEFT)
        assert os.WIFSTOPPED(os.waitpid(terminal.process.pid, os.WUNTRACED)[1])
        assert termios.tcgetattr(terminal.slave) == terminal.before
        terminal.process.send_signal(signal.SIGCONT)
        assert ENTERED in terminal.wait_for("cpu, 0 to 100 %")
        terminal.press("\x03")
        assert terminal.end() == 0


def test_a_database_that_cannot_be_read_is_reported_and_tried_again(database: Database) -> None:
    away = database.path.with_suffix(".away")
    with Terminal(watch_command(database.path, EACH_SECOND)) as terminal:
        terminal.wait_for("cpu, 0 to 100 %")
        database.path.rename(away)
        terminal.wait_for("there is no database at")
        away.rename(database.path)
        terminal.wait_for("cpu, 0 to 100 %")


def test_without_a_database_the_screen_is_not_switched(tmp_path: Path) -> None:
    with Terminal(watch_command(tmp_path / "none.db", NEVER)) as terminal:
        assert terminal.end() == 1
    assert "start the collector first" in terminal.text
    assert "\x1b[?" not in terminal.text


def test_names_and_messages_from_outside_cannot_control_the_terminal(database: Database) -> None:
    hostile = "\x1b[?1049l\x07evil\r"
    now = int(time.time())
    insert(database, LLAMA_METRICS, timestamp=now, model=hostile, predicted_tokens_per_second=1.0)
    insert(database, LOGS, level=hostile, message=hostile, source=hostile, timestamp=now)
    with Terminal(watch_command(database.path, NEVER)) as terminal:
        frame = terminal.wait_for("cpu, 0 to 100 %")
        terminal.press("\x03")
        terminal.end()
    assert "evil" in frame
    assert "\x07" not in terminal.text
    assert terminal.text.count("\x1b[?1049l") == 1


def test_without_a_terminal_each_interval_prints_a_block_of_plain_text(database: Database) -> None:
    process = subprocess.Popen(
        watch_command(database.path, EACH_SECOND),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    assert process.stdout
    seen = b""
    while seen.count(b"cpu, 0 to 100 %") < 2:
        seen += os.read(process.stdout.fileno(), 65_536)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=WAIT_SECONDS)
    text = (seen + rest).decode()
    assert (process.returncode, errors) == (0, b"")
    assert "\x1b" not in text
    assert len(re.findall(r"(?:^|\n\n)\d\d:\d\d:\d\d  every 1 s\n", text)) >= 2


def test_watch_and_json_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["status", "--watch", "--json"])
    assert ended.value.code == 2
    assert "not allowed with" in capsys.readouterr().err


def test_a_block_is_as_high_as_its_reading() -> None:
    assert sparkline([0, 12.4, 12.5, 50, 99.9, 100, 250, -1, None], 100) == "▁▁▂▅███▁ "
    assert sparkline([0, 0], 0) == "▁▁"
