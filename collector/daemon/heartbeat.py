"""What systemd hears from a running collector: ready, alive, and how it fares in a line for people."""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from collector.daemon import systemd
from collector.health import OK, Health
from collector.schema import BYTES_PER_MB

_PATIENCE_SECONDS = 30
_PATIENCE_INTERVALS = 3
_ALWAYS_TOLD = ("llama_server", "gpu")
_WELL = ("ok", "starting")


class Heartbeat:
    """Tells systemd when the first sample is committed, that all is alive, every change of the status line.

    Args:
        vital: health and interval in seconds of the jobs without which nothing is collected.
        status: makes the line.
    """

    def __init__(self, vital: Iterable[tuple[Health, float]], status: Callable[[], str]) -> None:
        self._vital = [
            (health, max(_PATIENCE_SECONDS, _PATIENCE_INTERVALS * interval)) for health, interval in vital
        ]
        self._status = status
        self._told = ""
        self._is_ready = False

    def send(self) -> None:
        """To be called every few seconds."""
        if not self._is_ready:
            self._get_ready()
        if self.is_alive():
            systemd.notify(WATCHDOG=1)
        if (line := self._status()) != self._told:
            systemd.notify(STATUS=line)
            self._told = line

    def _get_ready(self) -> None:
        self._is_ready = all(health.state == OK for health, _ in self._vital)
        if self._is_ready:
            systemd.notify(READY=1)
        else:  # the disk is full, or the database locked: no reason to be ended
            systemd.notify(EXTEND_TIMEOUT_USEC=_PATIENCE_SECONDS * 1_000_000)

    def is_alive(self) -> bool:
        """Whether every vital job came back lately, be it with a failure: a full disk is no death."""
        now = time.monotonic()
        return all(now - (health.last_run or now) < patience for health, patience in self._vital)


def status_line(interval: int, health: Sequence[Health], active_models: object, database: Path) -> str:
    """How the collector fares, in one line.

    Args:
        interval: seconds between two samples.
        health: of all sources and jobs.
        active_models: models that are loaded; None = not known.
        database: its file.
    """
    told = [one for one in health if one.name in _ALWAYS_TOLD or one.state.name not in _WELL]
    models = [] if active_models is None else [f"models loaded {active_models}"]
    states = [f"{one.name} {one.state.name}" for one in told]
    return "; ".join([f"sampling every {interval} s", *states, *models, *_size(database)])


def _size(database: Path) -> list[str]:
    try:
        return [f"database {database.stat().st_size / BYTES_PER_MB:,.0f} MB"]
    except OSError:
        return []
