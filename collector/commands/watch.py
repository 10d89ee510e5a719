"""`status --watch`: the readings live, with short lines of their history.

No terminal library: a handful of ANSI codes, which every terminal of today obeys, do all of it.
"""

import os
import signal
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path

from collector.commands.status import live_lines, read_status
from collector.database.connection import connect_read_only, fetch, translate_sqlite_errors
from collector.errors import DatabaseError
from collector.text import number

HISTORY_SAMPLES = 40
_MARKS = "▁▂▃▄▅▆▇█"
_UNKNOWN = " "
_PERCENT = 100.0
# The other screen, no cursor, no wrapping: the terminal itself cuts long lines, whatever its width is now.
_TAKE_SCREEN, _GIVE_BACK = "\x1b[?1049h\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h\x1b[?1049l"
_HOME, _EMPTY_LINE = "\x1b[H", "\x1b[K"
_USUAL_HEIGHT = 24
_ENDS = {signal.SIGTERM, signal.SIGHUP}
_ON_SCREEN = {signal.SIGWINCH, signal.SIGTSTP}
_SOURCES = (
    ("host_metrics", "NULL", "cpu_usage", "cpu, 0 to 100 %"),
    ("gpu_metrics", "gpu_index", "gpu_usage", "busy, 0 to 100 %"),
    ("llama_metrics", "model", "predicted_tokens_per_second", "tokens/s, highest"),
)


def watch(database: Path, interval_seconds: float) -> None:
    """Show the status anew after each interval, until Ctrl-C or SIGTERM; then the process should end.

    On a terminal it has a screen of its own, which is given back at the end. Elsewhere it prints blocks of
    plain text with an empty line between.

    Raises:
        DatabaseError: there is no database, or it cannot be read, already at the start.
    """
    read_status(database, count_rows=False)  # its faults are told before the screen is taken
    is_screen = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    awaited = _ENDS | _ON_SCREEN if is_screen else _ENDS
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # where an old locale has no such marks
    told = None
    with suppress(KeyboardInterrupt):
        while told not in _ENDS:
            with _screen() if is_screen else nullcontext():
                told = _show(database, interval_seconds, awaited)
            if told == signal.SIGTSTP:  # Ctrl-Z: stopped here, with the screen given back, until `fg`
                os.kill(os.getpid(), signal.SIGSTOP)


def _show(database: Path, interval_seconds: float, awaited: set[signal.Signals]) -> int:
    """Show it until a signal other than that of a new size; that signal."""
    show = _draw if signal.SIGWINCH in awaited else _print
    while True:
        show([f"{time.strftime('%H:%M:%S')}  every {interval_seconds:g} s", *_lines(database)])
        told = signal.sigtimedwait(awaited, interval_seconds)
        if told and told.si_signo != signal.SIGWINCH:
            return told.si_signo


def _draw(lines: list[str]) -> None:
    height = os.get_terminal_size(sys.stdout.fileno()).lines or _USUAL_HEIGHT
    filled = [*lines, *[""] * height][:height]
    _write(_HOME + "\n".join(_EMPTY_LINE + line for line in filled))


def _print(lines: list[str]) -> None:
    _write("\n".join([*lines, "", ""]))


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


@contextmanager
def _screen() -> Iterator[None]:
    """The terminal's other screen, on which typed keys leave no trace."""
    keyboard = termios.tcgetattr(sys.stdin) if sys.stdin.isatty() else None
    try:
        if keyboard:
            quiet = [*keyboard[:3], keyboard[3] & ~termios.ECHO, *keyboard[4:]]
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, quiet)
        _write(_TAKE_SCREEN)
        yield
    finally:
        with suppress(OSError):  # the terminal may be gone
            _write(_GIVE_BACK)
        if keyboard:
            with suppress(termios.error):
                termios.tcsetattr(sys.stdin, termios.TCSAFLUSH, keyboard)


def _lines(database: Path) -> list[str]:
    try:
        return live_lines(read_status(database, count_rows=False), _histories(database))
    except DatabaseError as error:  # it may pass: a long transaction of another program, a restore
        return ["", str(error)]


def _histories(database: Path) -> dict[tuple[str, object], str]:
    """A line of marks, one a sample, by table and model or GPU; none where nothing is known."""
    with closing(connect_read_only(database)) as connection, translate_sqlite_errors(database):
        tables = {row["name"] for row in fetch(connection, "SELECT name FROM sqlite_master")}
        moments = [row["timestamp"] for row in fetch(connection, _NEWEST_SAMPLES, (HISTORY_SAMPLES,))][::-1]
        known: dict[tuple[str, object], dict[int, float]] = {}
        for table, key, value, _ in _SOURCES:
            question = f"""
                SELECT timestamp, {key} AS series, {value} AS reading FROM {table}
                WHERE timestamp >= ? AND {value} IS NOT NULL"""  # noqa: S608
            for row in fetch(connection, question, moments[:1]) if table in tables and moments else ():
                known.setdefault((table, row["series"]), {})[row["timestamp"]] = row["reading"]
    meanings = {table: meaning for table, _, _, meaning in _SOURCES}
    return {
        key: _history([readings.get(moment) for moment in moments], meanings[key[0]])
        for key, readings in known.items()
    }


_NEWEST_SAMPLES = "SELECT DISTINCT timestamp FROM metrics ORDER BY timestamp DESC LIMIT ?"


def _history(readings: Sequence[float | None], meaning: str) -> str:
    if meaning.endswith("%"):
        return f"{spark_line(readings, _PERCENT)}  {meaning}"
    highest = max((reading for reading in readings if reading is not None), default=0.0)
    return f"{spark_line(readings, highest)}  {meaning} {number(highest)}"


def spark_line(readings: Sequence[float | None], top: float) -> str:
    """One mark a reading, from the lowest for 0 to the full one for `top`; unknown is a blank."""
    return "".join(_UNKNOWN if reading is None else _mark(reading / (top or 1)) for reading in readings)


def _mark(share: float) -> str:
    return _MARKS[max(0, min(int(share * len(_MARKS)), len(_MARKS) - 1))]
