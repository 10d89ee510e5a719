"""The state of each source and job, and the runs of the collector.

A change of state is logged once; the current states are stored with every flush. See `collector_health` and
`collector_runs`.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from collector.errors import CollectorError, DatabaseBusy, SourceAbsent, Stopped
from collector.schema import AUTOMATIC_ID, Column, Row, Table

COLLECTOR_HEALTH = Table(
    "collector_health",
    "One row per source or job of the collector: its current state. Written with every flush.",
    (
        Column("name", "TEXT PRIMARY KEY", "key", "of the source or job; `collector` is the whole"),
        Column(
            "state", "TEXT NOT NULL", "state", "ok, absent, failed, stuck, waiting; llama_server has its own"
        ),
        Column("message", "TEXT NOT NULL", "text", "what is wrong and what to do; empty when all is well"),
        Column("since", "INTEGER NOT NULL", "time", "Unix seconds of the last change of state"),
        Column("last_success", "INTEGER", "time", "Unix seconds of the last run that succeeded"),
        Column("last_duration_ms", "REAL", "gauge", "wall time of the last run, milliseconds"),
        Column("runs", "INTEGER NOT NULL", "counter", "runs since the collector's start"),
        Column(
            "failures", "INTEGER NOT NULL", "counter", "runs since the collector's start that did not succeed"
        ),
    ),
)

FLUSH_FINGERPRINT = "SELECT total(runs), total(since) FROM collector_health"
"""Fingerprint of the last flush: it changes with every flush and differs between collectors."""

COLLECTOR_RUNS = Table(
    "collector_runs",
    "One row per run of the collector; a reload of the settings ends one run and begins the next.",
    (
        Column("id", AUTOMATIC_ID, "key", "ascending"),
        Column("version", "TEXT", "label", "version of the collector"),
        Column("process_id", "INTEGER", "label", "its process; NULL = not known"),
        Column("boot_id", "TEXT", "label", "the kernel's random id of this boot; NULL = not known"),
        Column("started_at", "INTEGER NOT NULL", "time", "Unix seconds of the start"),
        Column(
            "started_boot_seconds",
            "REAL",
            "text",
            "seconds from the machine's boot to the start (CLOCK_BOOTTIME); NULL = not known",
        ),
        Column(
            "stopped_at",
            "INTEGER",
            "time",
            "Unix seconds of the stop; NULL = running, or it ended without stopping",
        ),
        Column(
            "stopped_cleanly",
            "INTEGER",
            "state",
            "1 = everything was written at the stop; 0 = rows were lost; NULL = running, or it did not stop",
        ),
        Column(
            "integrity",
            "TEXT",
            "state",
            "check of the file after an unclean stop: due, ok, damaged; NULL = no check was due",
        ),
        Column("integrity_checked_at", "INTEGER", "time", "Unix seconds of the end of that check"),
    ),
)

_REPEAT_SECONDS = 600  # between two events about one state whose message changes

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class State:
    """The state of a source or job.

    Args:
        name: one or two words.
        message: a sentence that says what to do, if there is something to do.
        level: level of the event that reports the change.
        success: whether a run with this state counts as successful.
    """

    name: str
    message: str = ""
    level: str = "info"
    success: bool = True


OK = State("ok")


class Health:
    """The state of one source or job; any thread may update it.

    Args:
        name: name of the source or job.

    Attributes:
        state: the current state.
        last_run: end of the last run on the monotonic clock, which nobody can set; None before the first one.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = State("starting")
        self._since = int(time.time())
        self.last_run: float | None = None
        self._logged_at = 0.0
        self._last_success: int | None = None
        self._duration_ms: float | None = None
        self._runs = 0
        self._failures = 0
        # Log threads flush beside the timer; both must not log the same change of the state of `flush`.
        self._lock = threading.RLock()

    def set_state(self, state: State, *, exception: BaseException | None = None) -> None:
        """Set the state and log a change, except the first one to `ok`.

        A message that changes while the state stays the same (it may quote an answer from outside) is logged
        at most once in `_REPEAT_SECONDS`.
        """
        with self._lock:
            changed = state.name != self.state.name
            now = time.time()
            if changed or (state != self.state and now - self._logged_at > _REPEAT_SECONDS):
                if self.state.name != "starting" or state != OK:
                    text = f"{self.name}: {state.name}" + (f": {state.message}" if state.message else "")
                    values = {"exc_info": exception} if exception else {}
                    getattr(structlog.get_logger(), state.level)(text, **values)
                self._logged_at = now
            if changed:
                self._since = int(now)
            self.state = state

    def record_run(self, state: State, seconds: float, *, exception: BaseException | None = None) -> None:
        """Record a run that has ended.

        Args:
            state: the state after it.
            seconds: its duration.
            exception: an unexpected exception, to be logged with its traceback.
        """
        with self._lock:
            self._runs += 1
            self.last_run = time.monotonic()
            self._duration_ms = seconds * 1000
            if state.success:
                self._last_success = int(time.time())
            else:
                self._failures += 1
            self.set_state(state, exception=exception)

    def row(self) -> Row:
        """Return the row of `collector_health`."""
        return (
            self.name,
            self.state.name,
            self.state.message,
            self._since,
            self._last_success,
            self._duration_ms,
            self._runs,
            self._failures,
        )


def observe(
    health: Health, action: Callable[[], Result], state_of: Callable[[Result], State] = lambda _: OK
) -> Result | None:
    """Run a source or a job once, catch what it raises, and record the run.

    This is the only place that catches every exception: a bug of ours or of a library in one source must not
    disturb another one.

    Args:
        health: where the run is recorded.
        action: the source or job.
        state_of: returns the state for a result.

    Returns:
        the result, or None if the action raised an exception. One that was stopped is not recorded.
    """
    started = time.perf_counter()
    result, exception = None, None
    try:
        result = action()
        state = state_of(result)
    except Stopped:
        return None  # it was ended early, and did neither succeed nor fail
    except SourceAbsent as error:
        state = State("absent", str(error), success=False)
    except DatabaseBusy as error:
        state = State("waiting", str(error), level="warning", success=False)
    except CollectorError as error:
        state = State("failed", str(error), level="error", success=False)
    except Exception as error:  # noqa: BLE001 - see above
        state = State("failed", f"{type(error).__name__}: {error}", level="error", success=False)
        exception = error
    health.record_run(state, time.perf_counter() - started, exception=exception)
    return result


def read_boot_id() -> str | None:
    """Return the kernel's random id of the current boot; None if the kernel does not report one."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip() or None
    except (OSError, UnicodeDecodeError):
        return None
