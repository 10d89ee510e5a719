"""The table `server_runs`, one row for each process that served a model, and how two processes differ."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from collector.schema import AUTOMATIC_ID, Column, Table, Write
from collector.sources.llama.processes import LlamaProcess

SERVER_RUNS = Table(
    "server_runs",
    "One row a process that served a model: a single llama-server, or a router's child for one model.",
    (
        Column("id", AUTOMATIC_ID, "key", "ascending in the order in which runs were first seen"),
        Column("server", "TEXT NOT NULL", "label", "the server that it belongs to: its listening address"),
        Column("address", "TEXT", "label", "where the process answers: HOST:PORT, or the path of a socket"),
        Column("model", "TEXT NOT NULL", "label", "the server's name for the model"),
        Column("model_id", "TEXT", "key", "models.id"),
        Column("process_id", "INTEGER", "label", "of the process; NULL = it cannot be seen from here"),
        Column("boot_id", "TEXT", "label", "of the boot of the host in which the process ran"),
        Column(
            "started_boot_seconds",
            "REAL",
            "label",
            "start of the process, seconds since that boot; with process_id and boot_id its identity",
        ),
        Column("started_at", "REAL", "time", "Unix seconds of the start of the process; NULL = not known"),
        Column("first_seen_at", "INTEGER NOT NULL", "time", "Unix seconds of the first sample that saw it"),
        Column(
            "ended_at",
            "INTEGER",
            "time",
            "Unix seconds of the sample that saw its end; NULL = it was not seen",
        ),
        Column(
            "outcome",
            "TEXT",
            "state",
            "how it ended: unloaded, evicted, crashed, failed, ended (the server went away), replaced "
            "(another process serves the model), unobserved (while no collector ran); "
            "NULL = it has not ended",
        ),
        Column("exit_code", "INTEGER", "label", "of the process, after crashed and failed"),
        Column(
            "counters_from_zero",
            "INTEGER NOT NULL",
            "state",
            "1 = it began within the recorded time, so all that its counters show was done in it; 0 = before",
        ),
        Column(
            "metrics_run",
            "TEXT",
            "label",
            "number that the process draws at its start and sends with /metrics",
        ),
        Column("build", "INTEGER", "label", "llama-server's build number; NULL = it does not know its own"),
        Column("arguments", "TEXT", "text", "JSON array: its command line, with masked keys"),
        Column("context_size", "INTEGER", "label", "tokens of context of one slot"),
        Column("slots", "INTEGER", "label", "requests that it works on at the same time"),
        Column("driver_version", "TEXT", "label", "of the GPU driver when the run was first seen"),
        Column("gpus", "TEXT", "text", "JSON array of the GPUs of the host: vendor, uuid, name, bus_address"),
    ),
)

_COLUMNS = tuple(column.name for column in SERVER_RUNS.columns)
_SAVE = (
    f"INSERT INTO server_runs ({', '.join(_COLUMNS)}) "  # noqa: S608 - our own names
    f"VALUES ({', '.join('?' * len(_COLUMNS))}) "
    f"ON CONFLICT(id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _COLUMNS[1:])}"
)

RESTART_COUNTERS = ("tokens_predicted_total", "prompt_tokens_total", "n_decode_total")
"""Counters that every build has, and that fall only when a process starts anew."""

_START_TOLERANCE_SECONDS, _START_TOLERANCE_FALLEN_SECONDS = 2.0, 0.1
_SAME_PROCESS_SECONDS = 60.0

Counters = tuple[float | None, ...]
"""The values of `RESTART_COUNTERS`; None where the build does not report one."""


@dataclass(slots=True)
class Run:
    """One row of `server_runs`, in the order of its columns, and the newest counters of the process.

    Attributes:
        counters: None while no row of `llama_metrics` belongs to the run.
        is_observed: whether this collector has seen the process, not only the one before it.
    """

    id: int
    server: str
    address: str | None
    model: str
    model_id: str | None
    process_id: int | None = None
    boot_id: str | None = None
    started_boot_seconds: float | None = None
    started_at: float | None = None
    first_seen_at: int = 0
    ended_at: int | None = None
    outcome: str | None = None
    exit_code: int | None = None
    counters_from_zero: int = 0
    metrics_run: str | None = None
    build: int | None = None
    arguments: str | None = None
    context_size: int | None = None
    slots: int | None = None
    driver_version: str | None = None
    gpus: str | None = None
    counters: Counters | None = field(default=None, compare=False)
    is_observed: bool = field(default=False, compare=False)

    def save(self) -> Write:
        """Insert or update the row."""
        return Write(_SAVE, (tuple(getattr(self, name) for name in _COLUMNS),))


@dataclass(frozen=True, slots=True)
class HistoryStart:
    """When the recorded time began.

    Args:
        boot_id: boot of the first collector that recorded its boot; version 0.1.0 did not. None where there
            is none.
        boot_seconds: when that collector started, in seconds since that boot.
        timestamp: Unix seconds of the first sample of all; None where nothing was recorded yet.
        sampled_before: whether there are samples of version 0.1.0, from before that start.
    """

    boot_id: str | None
    boot_seconds: float | None
    timestamp: float | None
    sampled_before: bool = False

    def is_before(self, process: LlamaProcess) -> bool:
        """Return whether a process of the present boot started within the recorded time.

        By the clock that nobody sets where that is possible: a process of another boot than the one in which
        the history began is younger than it, in the same boot the seconds since the boot decide. The wall
        clock decides only of the time in which version 0.1.0 sampled.
        """
        if self.boot_id is not None:
            if self.boot_id != process.boot_id or self.boot_seconds is None:
                return True
            if process.started_boot_seconds >= self.boot_seconds:
                return True
            if not self.sampled_before:
                return False
        return self.timestamp is not None and process.started_at >= self.timestamp


def is_restarted(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> bool:
    """Return whether two rows of one model, one after the other, are of two processes.

    Without uptimes only a counter that fell shows it. With uptimes the start of the process moved: by the
    wall clock, which may have been set between the two rows. A process that is older than the time between
    the rows, or whose uptime grew by a usual interval, is the same one, however the clock was set.

    Args:
        earlier: a row of `llama_metrics`, with `timestamp`, `uptime_seconds` and `RESTART_COUNTERS`.
        later: a row with a greater id.
    """
    fell = any(
        earlier[name] is not None and later[name] is not None and later[name] < earlier[name]
        for name in RESTART_COUNTERS
    )
    if earlier["uptime_seconds"] is None or later["uptime_seconds"] is None:
        return fell
    elapsed = later["timestamp"] - earlier["timestamp"]
    grown = later["uptime_seconds"] - earlier["uptime_seconds"]
    if fell:
        return bool(elapsed - grown > _START_TOLERANCE_FALLEN_SECONDS or grown < 0)
    if 0 <= grown <= _SAME_PROCESS_SECONDS:
        return False
    is_younger = later["uptime_seconds"] <= max(0, elapsed) + _START_TOLERANCE_SECONDS
    return bool(grown < 0 or (elapsed - grown > _START_TOLERANCE_SECONDS and is_younger))
