"""The table `server_runs`: one row for each process that served a model."""

from dataclasses import dataclass, field

from collector.schema import AUTOMATIC_ID, Column, Table, Write

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

RESTART_COUNTERS = ("tokens_predicted_total", "prompt_tokens_total", "n_decode_total")
"""Counters that every build has, and that fall only when a new process starts."""

Counters = tuple[float | None, ...]
"""The values of `RESTART_COUNTERS`; None for one that the build does not report."""


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

    def save(self) -> Write:
        """Return the statement that inserts or updates the row."""
        return Write(_SAVE, (tuple(getattr(self, name) for name in _COLUMNS),))
