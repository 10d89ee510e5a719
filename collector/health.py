"""How each source and job fares: told once when it changes, stored with every flush."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog

from collector.errors import CollectorError, DatabaseBusy, SourceAbsent
from collector.schema import Column, Row, Table

COLLECTOR_HEALTH = Table(
    "collector_health",
    "One row a source or job of the collector: how it fares now. Written with every flush.",
    (
        Column("name", "TEXT PRIMARY KEY", "key", "of the source or job; `collector` is the whole"),
        Column(
            "state", "TEXT NOT NULL", "state", "ok, absent, failed, stuck, waiting; llama_server has its own"
        ),
        Column("message", "TEXT NOT NULL", "text", "what is the case and what to do; empty when all is well"),
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
"""Another one after every flush, and of every collector: tells what this one wrote last."""

_RETELL_SECONDS = 600

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class State:
    """What is the case with a source or job.

    Args:
        name: one word or two.
        message: a sentence that says what to do, where something is to be done.
        level: of the event that tells the change.
        success: whether it counts as a run that succeeded.
    """

    name: str
    message: str = ""
    level: str = "info"
    success: bool = True


OK = State("ok")


class Health:
    """The state of one source or job; any thread may report it.

    Args:
        name: of the source or job.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = State("starting")
        self._since = int(time.time())
        self.last_run: float | None = None  # on the monotonic clock, which nobody sets
        self._told_at = 0.0
        self._last_success: int | None = None
        self._duration_ms: float | None = None
        self._runs = 0
        self._failures = 0
        self._lock = (
            threading.RLock()
        )  # the readers of logs flush beside the timer: one of them tells a change

    def set_state(self, state: State, *, exception: BaseException | None = None) -> None:
        """Note the state after a run; a change is logged, except the first one to `ok`.

        Words that change while the state stays (an answer from outside stands in them) are told at most
        once in `_RETELL_SECONDS`.
        """
        with self._lock:
            changed = state.name != self.state.name
            now = time.time()
            if changed or (state != self.state and now - self._told_at > _RETELL_SECONDS):
                self._tell(state, exception)
                self._told_at = now
            if changed:
                self._since = int(now)
            self.state = state

    def record_run(self, state: State, seconds: float, *, exception: BaseException | None = None) -> None:
        """Note a run that ended."""
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
        """The row of `collector_health`."""
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

    def _tell(self, state: State, exception: BaseException | None) -> None:
        if self.state.name == "starting" and state == OK:
            return
        logger = structlog.get_logger()
        text = f"{self.name}: {state.name}" + (f": {state.message}" if state.message else "")
        getattr(logger, state.level)(text, **({"exc_info": exception} if exception else {}))


def observe(
    health: Health, action: Callable[[], Result], state_of: Callable[[Result], State] = lambda _: OK
) -> Result | None:
    """Run a source or a job once: time it, catch what it raises, note its state.

    The only place that catches every exception: one fault of ours or of a library in one source
    must not disturb another.

    Returns:
        what the action returned, or None where it raised.
    """
    started = time.perf_counter()
    result, exception = None, None
    try:
        result = action()
        state = state_of(result)
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
