"""`status --watch`: shows the status live, with a sparkline of the last readings of each series.

No terminal library is needed: the few ANSI codes that are used work in every current terminal.
"""

import os
import signal
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path

from collector.commands.status import read_status
from collector.commands.status_text import format_live_status
from collector.database.connection import connect_read_only, fetch, translate_sqlite_errors
from collector.errors import DatabaseError
from collector.text import format_number

HISTORY_SAMPLES = 40
_BLOCKS = "▁▂▃▄▅▆▇█"
_UNKNOWN = " "
_PERCENT = 100.0
# The alternate screen, no cursor, no wrapping: the terminal itself cuts long lines at its present width.
_ENTER_SCREEN, _LEAVE_SCREEN = "\x1b[?1049h\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h\x1b[?1049l"
_HOME, _CLEAR_LINE = "\x1b[H", "\x1b[K"
_DEFAULT_HEIGHT = 24
_END_SIGNALS = {signal.SIGTERM, signal.SIGHUP}
_TERMINAL_SIGNALS = {signal.SIGWINCH, signal.SIGTSTP}
_SERIES = (
    ("host_metrics", "NULL", "cpu_usage", "cpu, 0 to 100 %"),
    ("gpu_metrics", "coalesce(uuid, gpu_index)", "gpu_usage", "busy, 0 to 100 %"),
    ("llama_metrics", "model", "predicted_tokens_per_second", "tokens/s, highest"),
)
"""Of each history: table, expression of the series (model or GPU), column, and meaning as it is shown."""
_NEWEST_SAMPLES = "SELECT DISTINCT timestamp FROM metrics ORDER BY timestamp DESC LIMIT ?"


def watch(database: Path, interval_seconds: float) -> None:
    """Show the status after each interval, until Ctrl-C or SIGTERM; then the process should end.

    A terminal is switched to its alternate screen, and back at the end. To anything else, blocks of plain
    text are written with an empty line between them.

    The signals are blocked and waited for, not handled, so that none interrupts the drawing of the screen.

    Raises:
        DatabaseError: there is no database, or it cannot be read, already at the start.
    """
    read_status(database, count_rows=False)  # its errors are printed before the screen is switched
    is_terminal = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    signals = _END_SIGNALS | _TERMINAL_SIGNALS if is_terminal else _END_SIGNALS
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # for a locale without the blocks
    received = None
    with suppress(KeyboardInterrupt):
        while received not in _END_SIGNALS:
            with _alternate_screen() if is_terminal else nullcontext():
                received = _show_until_signal(database, interval_seconds, signals)
            if received == signal.SIGTSTP:  # Ctrl-Z: stop here, with the normal screen, until `fg`
                os.kill(os.getpid(), signal.SIGSTOP)


def _show_until_signal(database: Path, interval_seconds: float, signals: set[signal.Signals]) -> int:
    """Show the status repeatedly; return the first signal that is not SIGWINCH (a new terminal size)."""
    while True:
        lines = [f"{time.strftime('%H:%M:%S')}  every {interval_seconds:g} s"]
        try:
            status = read_status(database, count_rows=False)
            lines += format_live_status(status, _read_histories(database), colours=sys.stdout.isatty())
        except DatabaseError as error:  # it may pass: a long transaction of another program, a restore
            lines += ["", str(error)]
        if signal.SIGWINCH in signals:
            height = os.get_terminal_size(sys.stdout.fileno()).lines or _DEFAULT_HEIGHT
            screen = [*lines, *[""] * height][:height]
            _write(_HOME + "\n".join(_CLEAR_LINE + line for line in screen))
        else:
            _write("\n".join([*lines, "", ""]))
        received = signal.sigtimedwait(signals, interval_seconds)
        if received and received.si_signo != signal.SIGWINCH:
            return received.si_signo


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


@contextmanager
def _alternate_screen() -> Iterator[None]:
    """Switch the terminal to its alternate screen for the block, and do not echo what is typed."""
    keyboard = termios.tcgetattr(sys.stdin) if sys.stdin.isatty() else None
    try:
        if keyboard:
            no_echo = [*keyboard[:3], keyboard[3] & ~termios.ECHO, *keyboard[4:]]
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, no_echo)
        _write(_ENTER_SCREEN)
        yield
    finally:
        with suppress(OSError):  # the terminal may be closed
            _write(_LEAVE_SCREEN)
        if keyboard:
            with suppress(termios.error):
                termios.tcsetattr(sys.stdin, termios.TCSAFLUSH, keyboard)


def _read_histories(database: Path) -> dict[tuple[str, object], str]:
    """Return a sparkline of the newest samples for each series that has a reading, by table and series."""
    with closing(connect_read_only(database)) as connection, translate_sqlite_errors(database):
        tables = {row["name"] for row in fetch(connection, "SELECT name FROM sqlite_master")}
        times = [row["timestamp"] for row in fetch(connection, _NEWEST_SAMPLES, (HISTORY_SAMPLES,))][::-1]
        readings: dict[tuple[str, object], dict[int, float]] = {}
        for table, series, column, _ in _SERIES:
            query = f"""
                SELECT timestamp, {series} AS series, {column} AS reading FROM {table}
                WHERE timestamp >= ? AND {column} IS NOT NULL"""  # noqa: S608
            for row in fetch(connection, query, times[:1]) if table in tables and times else ():
                readings.setdefault((table, row["series"]), {})[row["timestamp"]] = row["reading"]
    meanings = {table: meaning for table, _, _, meaning in _SERIES}
    histories = {}
    for key, by_time in readings.items():
        values, meaning = [by_time.get(moment) for moment in times], meanings[key[0]]
        if meaning.endswith("%"):
            histories[key] = f"{sparkline(values, _PERCENT)}  {meaning}"
        else:
            highest = max((value for value in values if value is not None), default=0.0)
            histories[key] = f"{sparkline(values, highest)}  {meaning} {format_number(highest)}"
    return histories


def sparkline(readings: Sequence[float | None], top: float) -> str:
    """Return one block for each reading, the lowest for 0 and the full one for `top`; a blank for None."""
    highest = len(_BLOCKS) - 1
    return "".join(
        _UNKNOWN
        if reading is None
        else _BLOCKS[max(0, min(int(len(_BLOCKS) * reading / (top or 1)), highest))]
        for reading in readings
    )
