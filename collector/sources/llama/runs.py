"""Runs: which process served which model, from when to when, and where its counters began.

The counters of /metrics start at 0 in every process. So two rows of `llama_metrics` can be compared only
within one run. Which run a row belongs to is decided here, once, when the row is written:

- The header of /metrics that every process draws anew is known: another header is another run.
- It is not (the metrics were not read yet), but the process is (id and start since boot): another process is
  another run.
- Neither is (a remote server, another container): a counter that fell shows that the process is another one.

The header comes first because it is read together with the counters. The list of processes was read a moment
before: the server may have been restarted since, and what was found there may not be the server itself but
the only llama-server on this machine.

Neither decision uses the wall clock, so setting it changes no sum.
"""

import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from collector.parsers.command_line import mask_secrets
from collector.parsers.server_answers import ServedModel
from collector.schema import SqlValue, Write
from collector.sources.base import Query
from collector.sources.gpu.source import GpuDetail
from collector.sources.llama.processes import LlamaProcess
from collector.sources.llama.run_table import (
    RESTART_COUNTERS,
    Counters,
    HistoryStart,
    Run,
    is_restarted,
)

ENDED, REPLACED, UNOBSERVED = "ended", "replaced", "unobserved"


@dataclass(frozen=True, slots=True)
class Sighting:
    """What one sample saw of the process that serves a model.

    Args:
        timestamp: Unix seconds of the sample.
        server: name of the server.
        address: where the process answers.
        model: the model that it serves.
        model_id: `models.id`.
        process: None where it cannot be seen.
        metrics_run: the header of /metrics; None where it was not read or has none.
        counters: values of `RESTART_COUNTERS`; None where /metrics was not read.
        is_new: whether it is known that nothing served the model at an earlier sample.
        build: its build number.
        slots: requests that it works on at the same time.
        gpus: the GPUs of the host; None where they are not read.
    """

    timestamp: int
    server: str
    address: str
    model: ServedModel
    model_id: str | None
    process: LlamaProcess | None = None
    metrics_run: str | None = None
    counters: Counters | None = None
    is_new: bool = False
    build: int | None = None
    slots: int | None = None
    gpus: GpuDetail | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """The run that a sample belongs to.

    Args:
        run_id: `server_runs.id`.
        counted_from_zero: whether the counters of this sample count in full: it is the first one of a run
            that began within the recorded time.
        changes: what must be written of the run.
    """

    run_id: int
    counted_from_zero: bool
    changes: list[Write]


class ServerRuns:
    """The newest run of each server and model; any thread may call it.

    Ids are assigned here, not by SQLite: rows that refer to a run wait in the buffer together with it, for
    hours if the database is locked.

    Args:
        query: reads the database.
    """

    def __init__(self, query: Query) -> None:
        self.query = query
        self._lock = threading.Lock()
        self._runs: dict[tuple[str, str], Run] = {}
        self._history: HistoryStart | None = None
        self._last_id = 0

    def load(self) -> None:
        """Read what earlier collectors recorded, on the first call.

        Raises:
            DatabaseBusy: another program holds a lock; the next call tries again.
        """
        with self._lock:
            if self._history is None:
                stored = [Run(**row) for row in self.query(_NEWEST_RUNS, ())]
                for run in stored:
                    run.counters = self._newest_counters(run.id)
                history = self._read_history_start()
                self._last_id = self._query_number(_LAST_ID)
                self._runs = {(run.server, run.model): run for run in stored}
                self._history = history
            elif self._history.timestamp is None:  # the first row of the table was not written yet
                self._history = self._read_history_start()

    def reserve_ids(self, number: int) -> int:
        """Return the first of so many consecutive ids that no run has had.

        Raises:
            DatabaseBusy: see `load`.
        """
        self.load()
        with self._lock:
            first = self._last_id + 1
            self._last_id += number
            return first

    def forget(self) -> None:
        """Forget what was read, so that the next call reads runs that were written in the meantime."""
        with self._lock:
            self._history = None

    def history_start(self) -> HistoryStart:
        """Return when the recorded time began.

        Raises:
            DatabaseBusy: see `load`.
        """
        self.load()
        assert self._history is not None
        return self._history

    def current(self, server: str, model: str) -> Run | None:
        """Return the run that serves a model now, or None."""
        run = self._runs.get((server, model))
        return run if run and run.outcome is None else None

    def observe(self, sighting: Sighting) -> Observation:
        """Return the run of a process that serves a model now, and what must be written of it.

        Raises:
            DatabaseBusy: see `load`.
        """
        self.load()
        with self._lock:
            key = (sighting.server, sighting.model.name)
            run, changes = self._runs.get(key), []
            if run is None or not _is_same_process(run, sighting):
                if run and run.outcome is None:
                    run.outcome = REPLACED if run.is_observed else UNOBSERVED
                    changes.append(run.save())
                if self._is_stale(sighting, run):
                    sighting = replace(sighting, process=None)
                run = self._begin(sighting, run)
                self._runs[key] = run
                changes.append(run.save())
            elif _update(run, sighting):
                changes.append(run.save())
            is_first = run.counters is None and sighting.counters is not None
            run.counters = sighting.counters or run.counters
            run.is_observed = True
            return Observation(run.id, is_first and bool(run.counters_from_zero), changes)

    def end(
        self, server: str, model: str, timestamp: int, outcome: str, exit_code: int | None = None
    ) -> list[Write]:
        """Record how the current run of a model ended; return what must be written.

        Args:
            server: name of the server.
            model: its name for the model.
            timestamp: Unix seconds of the sample that saw the end.
            outcome: see `server_runs.outcome`.
            exit_code: of the process, where it is reported.
        """
        with self._lock:
            run = self.current(server, model)
            if run is None:
                return []
            run.outcome, run.ended_at, run.exit_code = outcome, timestamp, exit_code
            return [run.save()]

    def end_absent(self, server: str, present: Iterable[str], timestamp: int) -> list[Write]:
        """End all runs of a server but those of the models that are present; return what must be written.

        A run that only an earlier collector saw ended at an unknown time.
        """
        changes: list[Write] = []
        names = set(present)
        with self._lock:
            for (of_server, model), run in self._runs.items():
                if of_server == server and model not in names and run.outcome is None:
                    run.outcome = ENDED if run.is_observed else UNOBSERVED
                    run.ended_at = timestamp if run.is_observed else None
                    changes.append(run.save())
        return changes

    def _new_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _begin(self, sighting: Sighting, previous: Run | None) -> Run:
        """Create the run of a process that was not seen before.

        Its counters count in full where it began within the recorded time: a process came before it, or it is
        known that none was there, or its start says so. They do not where the same process was counted under
        another name of its server, as after `url` was changed from an address to the name of a host.
        """
        assert self._history is not None
        process = sighting.process
        from_zero = not any(_is_surely_same_process(run, sighting) for run in self._runs.values()) and (
            previous is not None
            or sighting.is_new
            or self._follows_another_model(sighting)
            or (process is not None and self._history.is_before(process))
        )
        run = Run(
            self._new_id(),
            sighting.server,
            sighting.address,
            sighting.model.name,
            sighting.model_id,
            first_seen_at=sighting.timestamp,
            counters_from_zero=int(from_zero),
        )
        _update(run, sighting)
        return run

    def _follows_another_model(self, sighting: Sighting) -> bool:
        """Return whether another process served another model at the same address before."""
        address = (sighting.server, sighting.address)
        there = [run for run in self._runs.values() if (run.server, run.address) == address]
        return bool(there) and not any(_is_same_process(run, sighting) for run in there)

    def _is_stale(self, sighting: Sighting, previous: Run | None) -> bool:
        """Return whether a server was restarted since the processes were read: they show the one before."""
        process, header = sighting.process, sighting.metrics_run
        return process is not None and any(
            _has_process(run, process)
            and (run is previous or bool(run.metrics_run and header and run.metrics_run != header))
            for run in self._runs.values()
        )

    def _query_number(self, statement: str) -> int:
        rows = self.query(statement, ())
        return int(rows[0]["id"]) if rows else 0

    def _newest_counters(self, run_id: int) -> Counters | None:
        rows = self.query(_NEWEST_COUNTERS, (run_id,))
        if rows:
            return tuple(rows[0].values())
        return () if self.query(_IS_PRUNED, (run_id,)) else None

    def _read_history_start(self) -> HistoryStart:
        """Return what the table of the collector's runs says; nothing while its first row waits in memory."""
        rows = self.query(_FIRST_COLLECTOR_RUNS, ())
        known = next((row for row in rows if row["boot_id"] is not None), None)
        return HistoryStart(
            known["boot_id"] if known else None,
            known["started_boot_seconds"] if known else None,
            rows[0]["started_at"] if rows else None,
            sampled_before=bool(rows) and rows[0] is not known,
        )


_NEWEST_RUNS = (
    "SELECT * FROM server_runs WHERE id IN (SELECT max(id) FROM server_runs GROUP BY server, model)"
)
_LAST_ID = (
    "SELECT max(coalesce((SELECT max(id) FROM server_runs), 0), "
    "coalesce((SELECT max(run_id) FROM llama_metrics), 0), "
    "coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'server_runs'), 0)) AS id"
)
_NEWEST_COUNTERS = (
    f"SELECT {', '.join(RESTART_COUNTERS)} FROM llama_metrics "  # noqa: S608 - our own names
    "WHERE run_id = ? ORDER BY id DESC LIMIT 1"
)
_IS_PRUNED = (  # its rows may have been deleted: what its counters show may have been counted in them
    "SELECT 1 FROM server_runs WHERE id = ? AND first_seen_at < (SELECT min(timestamp) FROM metrics)"
)
_FIRST_COLLECTOR_RUNS = (
    "SELECT boot_id, started_boot_seconds, started_at FROM collector_runs "
    "WHERE id <= (SELECT min(id) FROM collector_runs WHERE boot_id IS NOT NULL) "
    "OR id = (SELECT min(id) FROM collector_runs) ORDER BY id"
)


def counters_of(samples: Mapping[str, float | None]) -> Counters:
    """Return the values of `RESTART_COUNTERS` among the samples of /metrics."""
    return tuple(samples.get(name) for name in RESTART_COUNTERS)


def _is_same_process(run: Run, sighting: Sighting) -> bool:
    """Return whether the process that serves a model is that of its newest run.

    Where nothing identifies the process, a run that ended because its model was unloaded never goes on,
    while one whose server could not be reached for a while does: the network may have been away, not the
    server. A counter that fell is always another run.
    """
    process = sighting.process
    if run.metrics_run and sighting.metrics_run:
        same = run.metrics_run == sighting.metrics_run
    elif run.process_id is not None and process:
        same = _has_process(run, process)
    elif run.started_at is not None and process:  # a run of version 0.1.0, which recorded no process id
        same = not is_restarted(
            {
                "timestamp": run.first_seen_at,  # of the newest row: see `RowUpgrade.begin`
                "uptime_seconds": run.first_seen_at - run.started_at,
                **dict.fromkeys(RESTART_COUNTERS),
            },
            {
                "timestamp": sighting.timestamp,
                "uptime_seconds": process.uptime_seconds,
                **dict.fromkeys(RESTART_COUNTERS),
            },
        )
    else:
        same = run.outcome in (None, ENDED)
    return same and not _has_fallen(run.counters, sighting.counters)


def _is_surely_same_process(run: Run, sighting: Sighting) -> bool:
    if run.metrics_run and sighting.metrics_run:
        return run.metrics_run == sighting.metrics_run and not _has_fallen(run.counters, sighting.counters)
    return sighting.process is not None and _has_process(run, sighting.process)


def _has_process(run: Run, process: LlamaProcess) -> bool:
    identity = (process.boot_id, process.pid, process.started_boot_seconds)
    return (run.boot_id, run.process_id, run.started_boot_seconds) == identity


def _has_fallen(before: Counters | None, now: Counters | None) -> bool:
    pairs = zip(before or (), now or (), strict=False)
    return any(old is not None and new is not None and new < old for old, new in pairs)


def _update(run: Run, sighting: Sighting) -> bool:
    """Record what is known of a run; return whether its row changed."""
    process = sighting.process
    known: dict[str, SqlValue] = {
        "address": sighting.address,
        "model_id": sighting.model_id,
        "metrics_run": sighting.metrics_run,
        "build": sighting.build,
        "slots": sighting.slots,
        "context_size": sighting.model.context_size,
    }
    if run.process_id is None:
        arguments = process.arguments if process else sighting.model.arguments
        known["arguments"] = json.dumps(mask_secrets(arguments), ensure_ascii=False) if arguments else None
        if process:
            known |= {
                "process_id": process.pid,
                "boot_id": process.boot_id,
                "started_boot_seconds": process.started_boot_seconds,
                "started_at": process.started_at,
            }
    if run.gpus is None and sighting.gpus:
        known |= _gpu_columns(sighting.gpus)
    changed = {name: value for name, value in known.items() if value not in (None, getattr(run, name))}
    is_reopened = run.outcome is not None
    run.outcome = run.ended_at = run.exit_code = None
    for name, value in changed.items():
        setattr(run, name, value)
    return is_reopened or bool(changed)


def _gpu_columns(detail: GpuDetail) -> dict[str, SqlValue]:
    versions = sorted({gpu.driver_version for gpu in detail.gpus if gpu.driver_version})
    gpus: list[dict[str, Any]] = [
        {"vendor": gpu.vendor, "uuid": gpu.uuid, "name": gpu.name, "bus_address": gpu.bus_address}
        for gpu in detail.gpus
    ]
    return {
        "driver_version": ", ".join(versions) or None,
        "gpus": json.dumps(gpus, ensure_ascii=False) if gpus else None,
    }
