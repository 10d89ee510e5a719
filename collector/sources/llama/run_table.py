"""The table `server_runs`, one row for each process that served a model, and how processes are compared."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from collector.schema import AUTOMATIC_ID, Column, Table, Write
from collector.sources.base import Query
from collector.sources.llama.local.process import LlamaProcess

SERVER_RUNS = Table(
    "server_runs",
    "One row per process that served a model: a single llama-server, or the child of a router for one model.",
    (
        Column("id", AUTOMATIC_ID, "key", "ascending, in the order in which the runs were first sampled"),
        Column("server", "TEXT NOT NULL", "label", "server of the model: its listening address"),
        Column(
            "address", "TEXT", "label", "address of the process itself: HOST:PORT, or the path of a socket"
        ),
        Column("model", "TEXT NOT NULL", "label", "name of the model on its server"),
        Column("model_id", "TEXT", "key", "models.id"),
        Column(
            "process_id",
            "INTEGER",
            "label",
            "process id; NULL = the process is not visible from this machine or container",
        ),
        Column("boot_id", "TEXT", "label", "id of the boot of the host in which the process ran"),
        Column(
            "started_boot_seconds",
            "REAL",
            "label",
            "start of the process, seconds since that boot; with process_id and boot_id it identifies it",
        ),
        Column("started_at", "REAL", "time", "Unix seconds of the start of the process; NULL = not known"),
        Column(
            "first_seen_at", "INTEGER NOT NULL", "time", "Unix seconds of the first sample with the process"
        ),
        Column(
            "ended_at",
            "INTEGER",
            "time",
            "Unix seconds of the first sample after its end; NULL = it has not ended, or ended unobserved",
        ),
        Column(
            "outcome",
            "TEXT",
            "state",
            "how it ended: unloaded, evicted, crashed, failed, ended (the server stopped), replaced "
            "(another process serves the model), unobserved (it ended while no collector ran); "
            "NULL = it has not ended",
        ),
        Column("exit_code", "INTEGER", "label", "exit code of the process, after crashed and failed"),
        Column(
            "counters_from_zero",
            "INTEGER NOT NULL",
            "state",
            "1 = it started after the first sample of all, so that its counters count in full; 0 = before",
        ),
        Column(
            "metrics_run",
            "TEXT",
            "label",
            "random number that identifies the process: the header Process-Start-Time-Unix of /metrics",
        ),
        Column("build", "INTEGER", "label", "build number of llama-server; NULL = not reported"),
        Column(
            "arguments", "TEXT", "text", "JSON array of its command line, with API keys and tokens masked"
        ),
        Column("context_size", "INTEGER", "label", "context of one slot, tokens"),
        Column("slots", "INTEGER", "label", "requests that it processes at the same time"),
        Column("driver_version", "TEXT", "label", "version of the GPU driver when the run was first sampled"),
        Column("gpus", "TEXT", "text", "JSON array of the GPUs of the host: vendor, uuid, name, bus_address"),
    ),
)

_COLUMNS = tuple(column.name for column in SERVER_RUNS.columns)
_SAVE = (
    f"INSERT INTO server_runs ({', '.join(_COLUMNS)}) "  # noqa: S608 - our own names
    f"VALUES ({', '.join('?' * len(_COLUMNS))}) "
    f"ON CONFLICT(id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _COLUMNS[1:])}"
)

_FIRST_COLLECTOR_RUNS = (
    "SELECT boot_id, started_boot_seconds, started_at FROM collector_runs "
    "WHERE id <= (SELECT min(id) FROM collector_runs WHERE boot_id IS NOT NULL) "
    "OR id = (SELECT min(id) FROM collector_runs) ORDER BY id"
)

RESTART_COUNTERS = ("tokens_predicted_total", "prompt_tokens_total", "n_decode_total")
"""Counters that every build has, and that fall only when a new process starts."""

_START_TOLERANCE_SECONDS = 2.0
"""How much the computed start of one process may differ: timestamps are whole seconds."""

_START_TOLERANCE_AFTER_FALL_SECONDS = 0.1
"""The same if a counter fell, which already suggests a restart."""

_SAME_PROCESS_SECONDS = 60.0
"""An uptime that grew by at most this much between two rows is that of one process."""

Counters = tuple[float | None, ...]
"""The values of `RESTART_COUNTERS`; None for one that the build does not report."""


def counters_of(samples: Mapping[str, float | None]) -> Counters:
    """Return the values of `RESTART_COUNTERS` among the samples of /metrics."""
    return tuple(samples.get(name) for name in RESTART_COUNTERS)


@dataclass(slots=True)
class Run:
    """One row of `server_runs`, in the order of its columns, and two values that are not stored in it.

    Attributes:
        counters: the values in the newest row of `llama_metrics` of the run; None if it has no row.
        is_observed: whether the present collector process has sampled the run; False if it only read the row
            that an earlier one wrote.
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

    def is_of(self, process: LlamaProcess) -> bool:
        """Return whether a visible process is the one of the run."""
        identity = (process.boot_id, process.pid, process.started_boot_seconds)
        return (self.boot_id, self.process_id, self.started_boot_seconds) == identity

    def has_start_of(self, process: LlamaProcess, timestamp: int) -> bool:
        """Return whether a run of version 0.1.0 is of a visible process: their starts are compared.

        Args:
            process: the process.
            timestamp: Unix seconds of the sample that measured it.
        """
        newest = self.first_seen_at  # the time of its newest row until that process continues the run
        uptime = None if self.started_at is None else newest - self.started_at
        no_counters = dict.fromkeys(RESTART_COUNTERS)
        return not is_restarted(
            {"timestamp": newest, "uptime_seconds": uptime, **no_counters},
            {"timestamp": timestamp, "uptime_seconds": process.uptime_seconds, **no_counters},
        )

    def is_above(self, counters: Counters | None) -> bool:
        """Return whether a counter is now lower than in the newest row, so that another process answered."""
        pairs = zip(self.counters or (), counters or (), strict=False)
        return any(old is not None and new is not None and new < old for old, new in pairs)

    def save(self) -> Write:
        """Return the statement that inserts or updates the row."""
        return Write(_SAVE, (tuple(getattr(self, name) for name in _COLUMNS),))


@dataclass(frozen=True, slots=True)
class HistoryStart:
    """When the first collector started on this database. Nothing is known about the time before.

    Args:
        boot_id: id of the boot in which the first collector started that recorded it: version 0.1.0 did not.
            None if there is none.
        boot_seconds: start of that collector, seconds since that boot.
        timestamp: start of the first collector of all, Unix seconds; None if nothing was recorded yet.
        sampled_before: whether version 0.1.0 sampled before the collector that recorded its boot.
    """

    boot_id: str | None
    boot_seconds: float | None
    timestamp: float | None
    sampled_before: bool = False

    @classmethod
    def read(cls, query: Query) -> Self:
        """Read it from `collector_runs`, whose first row may not be written yet."""
        rows = query(_FIRST_COLLECTOR_RUNS, ())
        with_boot = next((row for row in rows if row["boot_id"] is not None), None)
        return cls(
            with_boot["boot_id"] if with_boot else None,
            with_boot["started_boot_seconds"] if with_boot else None,
            rows[0]["started_at"] if rows else None,
            sampled_before=bool(rows) and rows[0] is not with_boot,
        )

    def is_before(self, process: LlamaProcess) -> bool:
        """Return whether a running process started after the first collector.

        The wall clock, which may have been set since then, is compared only for the time in which version
        0.1.0 sampled.
        """
        if self.boot_id is not None:
            if self.boot_id != process.boot_id or self.boot_seconds is None:
                return True  # the host was rebooted since: every process that runs now is younger
            if process.started_boot_seconds >= self.boot_seconds:
                return True
            if not self.sampled_before:
                return False
        return self.timestamp is not None and process.started_at >= self.timestamp


def is_restarted(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> bool:
    """Return whether two consecutive rows of one model are of two different processes.

    The start of a process is `timestamp - uptime_seconds`. If two rows are of one process, the uptime grew by
    as much as the timestamp, and both have the same start. But the timestamp is that of the wall clock, which
    may have been set between the two rows: then the start differs although the process is the same.

    Args:
        earlier: a row of `llama_metrics`, with `timestamp`, `uptime_seconds` and `RESTART_COUNTERS`.
        later: a row with a greater id.
    """
    has_fallen = any(
        earlier[name] is not None and later[name] is not None and later[name] < earlier[name]
        for name in RESTART_COUNTERS
    )
    if earlier["uptime_seconds"] is None or later["uptime_seconds"] is None:
        return has_fallen  # the process was not visible: only its counters can show a restart
    elapsed = later["timestamp"] - earlier["timestamp"]
    grown = later["uptime_seconds"] - earlier["uptime_seconds"]
    if has_fallen:
        # The start moved, even if by little. Example: uptime 0.5 s, and 1 s later 0.7 s and fewer tokens.
        return bool(elapsed - grown > _START_TOLERANCE_AFTER_FALL_SECONDS or grown < 0)
    if 0 <= grown <= _SAME_PROCESS_SECONDS:
        # The uptime grew by a usual interval. Example: the clock was set forward by a day, so that the
        # timestamps of the rows are 86,405 s apart, while the uptime grew by 5 s.
        return False
    # There is a long pause between the rows. The process is another one if it started after the earlier row.
    # Example: uptimes of 900 s and of 3,500 s in two rows that are 3,600 s apart. But an uptime of 100,600 s
    # in a row 603 s after the earlier one is that of the same process: the clock was set forward by 3 s.
    is_younger = later["uptime_seconds"] <= max(0, elapsed) + _START_TOLERANCE_SECONDS
    return bool(grown < 0 or (elapsed - grown > _START_TOLERANCE_SECONDS and is_younger))
