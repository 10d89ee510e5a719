"""Runs: which process served which model, from when to when, and whether its counters count in full.

The counters of /metrics start at 0 in every process. So two rows of `llama_metrics` can be compared only
within one run, which is one process. `ServerRuns.assign` decides which run a row belongs to, once, when the
row is written:

- If /metrics was read and sends the header that identifies the process, the header decides.
- Otherwise, if the process is visible, its id and its start decide.
- If it is not visible either (a server on another machine or in another container), a counter that fell shows
  that another process answered.

The header decides first because it is read together with the counters. The list of processes was read a
moment before: the server may have been restarted since then. And the process that was found may be another
llama-server, if the server itself runs in a container (see `process_at`).

No decision about a run of this version uses the wall clock, so that setting it changes no sum.
"""

import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace

from collector.parsers.command_line import mask_secrets
from collector.parsers.server_answers import ServedModel
from collector.schema import SqlValue, Write
from collector.sources.base import Query
from collector.sources.gpu.source import GpuDetail
from collector.sources.llama.local.process import LlamaProcess
from collector.sources.llama.run_table import RESTART_COUNTERS, Counters, HistoryStart, Run

ENDED, REPLACED, UNOBSERVED = "ended", "replaced", "unobserved"
"""Values of `server_runs.outcome`, which explains them."""


@dataclass(frozen=True, slots=True)
class ObservedProcess:
    """What one sample observed of the process that serves a model.

    Args:
        timestamp: Unix seconds of the sample.
        server: name of the server.
        address: address of the process.
        model: the model that it serves.
        model_id: `models.id`.
        process: its measurements; None if it is not visible from here.
        metrics_run: the header of /metrics that identifies the process; None if /metrics was not read or
            this build does not send it.
        counters: values of `RESTART_COUNTERS`; None if /metrics was not read.
        is_new: whether an earlier sample of this collector found that no process served the model.
        build: its build number.
        slots: requests that it processes at the same time.
        gpus: the GPUs of the host; None if they are not read.
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
class RunAssignment:
    """The run that a sample of a process was assigned to.

    Args:
        run_id: `server_runs.id`.
        counted_from_zero: whether the counters of this sample count in full, because it is the first one of a
            run that began after the first sample of all.
        changes: changed rows of `server_runs`.
        is_restart: whether the previous sample of the model was of another process.
    """

    run_id: int
    counted_from_zero: bool
    changes: list[Write]
    is_restart: bool = False


class ServerRuns:
    """The newest run of each server and model. Its methods can be called from any thread.

    Ids of runs are generated here, not by SQLite: a run and the rows that refer to it wait in the buffer
    together, for hours if the database is locked, and the rows must contain the id.

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
        """Read the runs that earlier collectors stored; do nothing if that was done.

        Raises:
            DatabaseBusy: another program holds a lock; the next call tries again.
        """
        with self._lock:
            if self._history is None:
                stored = [Run(**row) for row in self.query(_NEWEST_RUNS, ())]
                for run in stored:
                    run.counters = self._read_newest_counters(run.id)
                history = HistoryStart.read(self.query)
                last_id = self.query(_LAST_ID, ())
                self._last_id = int(last_id[0]["id"]) if last_id else 0
                self._runs = {(run.server, run.model): run for run in stored}
                self._history = history
            elif self._history.timestamp is None:  # the first row of `collector_runs` was in the buffer
                self._history = HistoryStart.read(self.query)

    def reserve_ids(self, number: int) -> int:
        """Reserve consecutive ids that no run has had before, and return the first one.

        Raises:
            DatabaseBusy: see `load`.
        """
        self.load()
        with self._lock:
            first_id = self._last_id + 1
            self._last_id += number
            return first_id

    def forget(self) -> None:
        """Discard what was read, so that the next call reads the runs that were written since."""
        with self._lock:
            self._history = None

    def history_start(self) -> HistoryStart:
        """Return when the first collector started on this database.

        Raises:
            DatabaseBusy: see `load`.
        """
        self.load()
        assert self._history is not None
        return self._history

    def current(self, server: str, model: str) -> Run | None:
        """Return the run of a model that has not ended; None if there is none."""
        run = self._runs.get((server, model))
        return run if run and run.outcome is None else None

    def assign(self, observed: ObservedProcess) -> RunAssignment:
        """Return the run of a process that serves a model now: the newest run of the model, or a new one.

        Four situations, of a model that is sampled every 5 seconds:

        1. The process of the previous sample still serves it: the run continues. Its row is written again
           only if it changed, for example because /props of the process was read and reported the build.
        2. A llama-server was restarted between two samples: the process is another one. The old run ends as
           `replaced`, and a new run begins.
        3. The collector was restarted, and the process is still the one of the stored run: the run continues.
        4. The collector was stopped for a night, and the process is another one: the old run ends as
           `unobserved`, without `ended_at`, because the time of its end is unknown.

        A run that has ended can continue, too: see `_is_same_process`. Its end is then removed from its row.

        Raises:
            DatabaseBusy: see `load`.
        """
        self.load()
        with self._lock:
            key = (observed.server, observed.model.name)
            run, changes = self._runs.get(key), []
            is_recounted = run is not None and self._is_counted_elsewhere(run, observed)
            is_restart = run is not None and not _is_same_process(run, observed)
            if run is None or is_restart or is_recounted:
                if run and run.outcome is None:
                    run.outcome = REPLACED if run.is_observed else UNOBSERVED
                    changes.append(run.save())
                if not is_recounted and self._has_stale_process(observed, run):
                    observed = replace(observed, process=None)
                run = self._begin(observed, run)
                self._runs[key] = run
                changes.append(run.save())
            elif _update(run, observed):
                changes.append(run.save())
            # The first row of the run, which need not be of its first sample: /metrics of a sleeping model of
            # an old build is not read before the model is used. Its counters then still count in full.
            is_first = run.counters is None and observed.counters is not None
            run.counters = observed.counters or run.counters
            run.is_observed = True
            return RunAssignment(run.id, is_first and bool(run.counters_from_zero), changes, is_restart)

    def end(
        self, server: str, model: str, timestamp: int, outcome: str, exit_code: int | None = None
    ) -> list[Write]:
        """End the current run of a model; return the rows to write.

        Args:
            server: name of the server.
            model: name of the model on that server.
            timestamp: Unix seconds of the first sample after the end.
            outcome: see `server_runs.outcome`.
            exit_code: exit code of the process; None if it is not reported.
        """
        with self._lock:
            run = self.current(server, model)
            if run is None:
                return []
            run.outcome, run.ended_at, run.exit_code = outcome, timestamp, exit_code
            return [run.save()]

    def end_others(self, server: str, present: Iterable[str], timestamp: int) -> list[Write]:
        """End the runs of a server whose model is not in memory any more; return the rows to write.

        A run that this collector never sampled ended while no collector ran, so that its end is not known.

        Args:
            server: name of the server.
            present: names of its models that are in memory.
            timestamp: Unix seconds of the sample.
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

    def _begin(self, observed: ObservedProcess, previous: Run | None) -> Run:
        """Return a new run for a process that is not in any earlier sample of the model.

        Its counters count in full if all their growth is within the recorded time. One of these shows that:

        - The model had an earlier run, so the process started after that one.
        - An earlier sample found that no process served the model.
        - Another process served another model at the same address before.
        - The process started after the first collector.

        Otherwise the process may have served for weeks before the first sample of all. And it was counted
        already if it has a run under another name of its server: for example after `url` was changed from an
        IP address to a host name.
        """
        assert self._history is not None
        process, key = observed.process, (observed.server, observed.address)
        at_address = [run for run in self._runs.values() if (run.server, run.address) == key]
        from_zero = not any(_is_identified(run, observed) for run in self._runs.values()) and (
            previous is not None
            or observed.is_new
            or (bool(at_address) and not any(_is_same_process(run, observed) for run in at_address))
            or (process is not None and self._history.is_before(process))
        )
        self._last_id += 1
        run = Run(
            self._last_id,
            observed.server,
            observed.address,
            observed.model.name,
            observed.model_id,
            first_seen_at=observed.timestamp,
            counters_from_zero=int(from_zero),
        )
        _update(run, observed)
        return run

    def _is_counted_elsewhere(self, run: Run, observed: ObservedProcess) -> bool:
        """Return whether the process of a stored run was sampled under another name of its server since.

        Example: `url` was changed from A to B, and back to A, while one process ran. Its run under A ends
        where that under B begins: if it continued, the work of the time of B would count twice.
        """
        return not run.is_observed and any(
            other.id > run.id and other.server != run.server and _is_identified(other, observed)
            for other in self._runs.values()
        )

    def _has_stale_process(self, observed: ObservedProcess, previous: Run | None) -> bool:
        """Return whether the observed process is the one before a restart of the server.

        Example: the list of processes contains process 7. The server is then restarted as process 8, which
        answers /metrics with another header. The new run must not have the id of process 7.
        """
        process, header = observed.process, observed.metrics_run
        return process is not None and any(
            run.is_of(process)
            and (run is previous or bool(run.metrics_run and header and run.metrics_run != header))
            for run in self._runs.values()
        )

    def _read_newest_counters(self, run_id: int) -> Counters | None:
        """Return the counters in the newest row of a run; None if it never had a row.

        They are () if all its rows may have been pruned. So the next row is not the first one of the run.
        """
        rows = self.query(_NEWEST_COUNTERS, (run_id,))
        if rows:
            return tuple(rows[0].values())
        return () if self.query(_IS_PRUNED, (run_id,)) else None


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
_IS_PRUNED = "SELECT 1 FROM server_runs WHERE id = ? AND first_seen_at < (SELECT min(timestamp) FROM metrics)"


def _is_same_process(run: Run, observed: ObservedProcess) -> bool:
    """Return whether an observed process is that of a model's newest run.

    The first comparison decides for which both sides have values:

    1. The header of /metrics that identifies a process.
    2. Process id, boot, and start since that boot: both processes were visible here. A process id alone is
       not enough, because the kernel reuses it.
    3. The start by the wall clock: a run of version 0.1.0, which recorded no process id.
    4. Nothing identifies the process, as with a remote server of an old build. Then an open run continues. So
       does one that ended because its server could not be reached: perhaps only the network was down for a
       minute. But a run whose model was unloaded (or evicted, crashed, ...) never continues, because the
       model was then loaded by a new process.

    In all cases a counter that fell shows another process. Example: a remote server is restarted between two
    samples, and `tokens_predicted_total` goes from 9,000 to 40.
    """
    process = observed.process
    if run.metrics_run and observed.metrics_run:
        same = run.metrics_run == observed.metrics_run
    elif run.process_id is not None and process:
        same = run.is_of(process)
    elif run.started_at is not None and process:
        same = run.has_start_of(process, observed.timestamp)
    else:
        same = run.outcome in (None, ENDED)
    return same and not run.is_above(observed.counters)


def _is_identified(run: Run, observed: ObservedProcess) -> bool:
    """Return whether the header, or else the process id, proves that an observed process is that of a run."""
    if run.metrics_run and observed.metrics_run:
        return run.metrics_run == observed.metrics_run and not run.is_above(observed.counters)
    return observed.process is not None and run.is_of(observed.process)


def _update(run: Run, observed: ObservedProcess) -> bool:
    """Store in a run what a sample observed of it, and reopen it if it had ended.

    A value that this sample does not have, such as the header of /metrics if that was not read, is unchanged.

    Returns:
        whether the row of the run must be written.
    """
    process = observed.process
    values: dict[str, SqlValue] = {
        "address": observed.address,
        "model_id": observed.model_id,
        "metrics_run": observed.metrics_run,
        "build": observed.build,
        "slots": observed.slots,
        "context_size": observed.model.context_size,
    }
    if run.process_id is None:
        arguments = process.arguments if process else observed.model.arguments
        values["arguments"] = json.dumps(mask_secrets(arguments), ensure_ascii=False) if arguments else None
        if process:
            values |= {
                "process_id": process.pid,
                "boot_id": process.boot_id,
                "started_boot_seconds": process.started_boot_seconds,
                "started_at": process.started_at,
            }
    if run.gpus is None and observed.gpus:
        gpus = observed.gpus.gpus
        versions = sorted({gpu.driver_version for gpu in gpus if gpu.driver_version})
        described = [
            {"vendor": gpu.vendor, "uuid": gpu.uuid, "name": gpu.name, "bus_address": gpu.bus_address}
            for gpu in gpus
        ]
        values["driver_version"] = ", ".join(versions) or None
        values["gpus"] = json.dumps(described, ensure_ascii=False) if described else None
    changed = {name: value for name, value in values.items() if value not in (None, getattr(run, name))}
    is_reopened = run.outcome is not None
    run.outcome = run.ended_at = run.exit_code = None
    for name, value in changed.items():
        setattr(run, name, value)
    return is_reopened or bool(changed)
