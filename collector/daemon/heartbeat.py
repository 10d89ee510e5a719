"""Reports to systemd: the collector is ready, it is alive, and its state in one line."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from collector.daemon import systemd
from collector.health import OK, Health
from collector.schema import BYTES_PER_MB

_TIMEOUT_SECONDS = 30
_TIMEOUT_INTERVALS = 3
_ALWAYS_SHOWN = ("llama_server", "gpu")
_NORMAL_STATES = ("ok", "starting")


class Heartbeat:
    """Reports readiness once, liveness every few seconds, and each change of the status line.

    Args:
        vital: health and interval in seconds of the jobs without which nothing is collected.
        status: returns the status line.
    """

    def __init__(self, vital: Iterable[tuple[Health, float]], status: Callable[[], str]) -> None:
        self._timeouts = [
            (health, max(_TIMEOUT_SECONDS, _TIMEOUT_INTERVALS * interval)) for health, interval in vital
        ]
        self._status = status
        self._last_status = ""
        self._is_ready = False

    def report(self) -> None:
        """Send what is to be reported now; to be called every few seconds."""
        if not self._is_ready:
            self._is_ready = all(health.state == OK for health, _ in self._timeouts)
            if self._is_ready:  # the first sample is in the database
                systemd.notify(READY=1)
            else:  # the disk is full, or the database is locked: no reason to be killed
                systemd.notify(EXTEND_TIMEOUT_USEC=_TIMEOUT_SECONDS * 1_000_000)
        if self.is_alive():
            systemd.notify(WATCHDOG=1)
        if (status := self._status()) != self._last_status:
            systemd.notify(STATUS=status)
            self._last_status = status

    def is_alive(self) -> bool:
        """Return whether each vital job has returned within its timeout, even with an error.

        A full disk makes each flush fail, but a restart would not help; only a job that hangs needs one.
        """
        now = time.monotonic()
        return all(now - (health.last_run or now) < timeout for health, timeout in self._timeouts)


def status_line(interval: int, health: Sequence[Health], active_models: object, database: Path) -> str:
    """Return the state of the collector in one line.

    Args:
        interval: seconds between two samples.
        health: health of all sources and jobs.
        active_models: number of loaded models; None = not known.
        database: path of the database.
    """
    shown = [part for part in health if part.name in _ALWAYS_SHOWN or part.state.name not in _NORMAL_STATES]
    facts = [f"sampling every {interval} s", *(f"{part.name} {part.state.name}" for part in shown)]
    if active_models is not None:
        facts.append(f"models loaded {active_models}")
    with suppress(OSError):  # if it was moved or removed, the state of the flush says so
        facts.append(f"database {database.stat().st_size / BYTES_PER_MB:,.0f} MB")
    return "; ".join(facts)
