"""The table `model_events`: one row for each change of the state of a model."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

from collector.parsers.command_line import option
from collector.parsers.server_answers import MAX_MODELS, ModelState, ServedModel
from collector.schema import AUTOMATIC_ID, Column, Index, Row, SqlValue, Table, Write
from collector.sources.llama.model_rows import ModelIndex
from collector.sources.llama.run_table import Run
from collector.sources.llama.runs import ServerRuns

MODEL_EVENTS = Table(
    "model_events",
    "One row per change of the state of a model, as llama-server reported it or its router's log tells.",
    (
        Column("id", AUTOMATIC_ID, "key", "ascending"),
        Column(
            "timestamp",
            "INTEGER NOT NULL",
            "time",
            "Unix seconds of occurred_at; without it, of the first sample with the new state",
        ),
        Column("model", "TEXT NOT NULL", "label", "name of the model on its server"),
        Column("model_id", "TEXT", "key", "models.id"),
        Column(
            "event",
            "TEXT NOT NULL",
            "label",
            "loading, loaded, sleeping, woke, unloaded, evicted, failed, crashed",
        ),
        Column("state", "TEXT NOT NULL", "state", "new state: loading, loaded, sleeping, unloaded, failed"),
        Column("previous_state", "TEXT", "state", "state before it; NULL = not known"),
        Column(
            "seconds_since_last",
            "REAL",
            "gauge",
            "how long the model was in its previous state; after `loading`: how long loading took, from the "
            "start of its process; NULL = not known",
        ),
        Column("exit_code", "INTEGER", "label", "exit code of its process, after failed and crashed"),
        Column("model_path", "TEXT", "label", "path of its file, as configured on the server"),
        Column("context_size", "INTEGER", "label", "context of one slot, tokens, while it is loaded"),
        Column("build", "INTEGER", "label", "build number of llama-server; NULL = not reported"),
        Column("server", "TEXT", "label", "server of the model: its listening address"),
        Column("run_id", "INTEGER", "key", "server_runs.id of the process that serves, or served, the model"),
        Column(
            "occurred_at",
            "REAL",
            "time",
            "Unix seconds, to the millisecond, as the router's log has it; NULL = only sampling saw it",
        ),
        Column(
            "evidence",
            "TEXT",
            "label",
            "sampling (reason and time are estimates), log (no sample saw it), log and sampling; "
            "NULL = sampling, before this column",
        ),
    ),
    (
        Index("idx_model_events_timestamp", "timestamp DESC"),
        Index("idx_model_events_server", "server, model"),
        Index("idx_model_events_moment", "server, model, coalesce(occurred_at, timestamp), id"),
    ),
    retired_indexes=("idx_model_events_model",),  # of version 0.1.0
)

_IN_MEMORY = ("loading", "loaded", "sleeping")
"""States in which a model counts towards --models-max of a router."""

MAX_CHANGES = 256
"""How many events one sample writes at most: the others are found again in the next sample."""

_KNOWN_WITHIN = 4
"""A duration between two samples is stored if it is at least this many times their distance."""

_LAST_EVENTS = (
    "SELECT model, state, timestamp, model_path FROM (SELECT *, row_number() OVER (PARTITION BY model "
    "ORDER BY coalesce(occurred_at, timestamp) DESC, id DESC) AS age FROM model_events WHERE server = ?) "
    "WHERE age = 1"
)


@dataclass(frozen=True, slots=True)
class Change:
    """A change of a model's state.

    Args:
        model: the model, with its new state.
        event: name of the event; None if the change is not an event: a model that is unloaded when it is
            first reported, or that had failed and is unloaded now.
        previous_state: None if it is not known.
        seconds: how long the model was in its previous state; None if that is not known.
    """

    model: ServedModel
    event: str | None
    previous_state: ModelState | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class _LastState:
    """A model with its state in the previous sample, and the time at which that state began.

    Args:
        model: the model.
        since: seconds since boot; None if the model already had this state when it was first reported.
    """

    model: ServedModel
    since: float | None


@dataclass(frozen=True, slots=True)
class Observed:
    """What one sample measured of the processes of models; all by name of the model.

    Args:
        restarted: models that another process serves than in the previous sample.
        working: models that processed requests in the newest reading of /metrics of a server that serves
            only one model: it ends while it works only if it is killed or crashes, or the user stops it.
        load_seconds: how long their present process took to load them.
        used_at: when they were used last, seconds of a monotonic clock.
    """

    restarted: AbstractSet[str] = frozenset()
    working: AbstractSet[str] = frozenset()
    load_seconds: Mapping[str, float] = field(default_factory=dict)
    used_at: Mapping[str, float] = field(default_factory=dict)


NOTHING_OBSERVED = Observed()


class ModelEvents:
    """The states of the models of one server, compared from sample to sample.

    The first sample of a collector is compared with the newest stored event of each model.

    Args:
        server: name of the server.
        models: the rows of `models`.
        runs: the runs of all servers.
        clock: returns the seconds of a monotonic clock.
    """

    def __init__(
        self,
        server: str,
        models: ModelIndex,
        runs: ServerRuns,
        clock: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    ) -> None:
        self._server = server
        self._models = models
        self._runs = runs
        self._clock = clock
        self._last_states: dict[str, _LastState] | None = None
        self._compared_at = clock()

    def compare(
        self, models: Sequence[ServedModel], max_loaded: int | None, observed: Observed = NOTHING_OBSERVED
    ) -> list[Change]:
        """Return the changes since the previous sample. A model that is not reported any more is unloaded.

        At most `MAX_CHANGES` of them have an event. Of a model whose process was replaced between two
        samples, the end of the old process is a change as well, so that each process was loaded once.

        Args:
            models: all models that the server reports.
            max_loaded: how many models it keeps loaded; None or 0 = no limit.
            observed: what was measured of their processes.

        Raises:
            DatabaseBusy: another program holds a lock, and the stored events were not read yet; nothing was
                compared.
        """
        last = self._read_last_states()
        present = {model.name for model in models}
        gone = [_without_process(one.model) for name, one in last.items() if name not in present]
        evicted = _evicted_models(last, models, max_loaded or 0, observed.used_at)
        now = self._clock()
        gap, self._compared_at = now - self._compared_at, now
        changes: list[Change] = []
        for model in (*gone, *models):
            before = last.get(model.name)
            if before and not _is_changed(before, model, observed.restarted):
                continue
            if sum(change.event is not None for change in changes[-MAX_CHANGES:]) >= MAX_CHANGES:
                break
            if before and _is_replaced(before, model, observed.restarted):
                end = replace(before.model, state="failed" if model.name in observed.working else "unloaded")
                changes.append(self._change(before, end, gap, evicted))
                before = _LastState(end, None)
            change = self._change(before, model, gap, evicted)
            if change.event == "loaded" and (seconds := observed.load_seconds.get(model.name)) is not None:
                change = replace(change, previous_state="loading", seconds=seconds)
            changes.append(change)
            last[model.name] = _LastState(model, now if before else None)
        if len(last) > MAX_MODELS:  # a router that reports other names in each sample
            for name in last.keys() - present:
                del last[name]
        return changes

    def _change(
        self, before: _LastState | None, model: ServedModel, gap: float, evicted: AbstractSet[str]
    ) -> Change:
        """Return a change, with the duration of the previous state unless that is known too roughly.

        Args:
            before: the model before it.
            model: the model after it.
            gap: seconds since the previous sample, by which a duration may be wrong.
            evicted: names of the models that were evicted.
        """
        now = self._compared_at
        previous = before.model.state if before else None
        seconds = max(0.0, now - before.since) if before and before.since is not None else None
        event = _event(previous, model.state, is_evicted=model.name in evicted)
        if event == "loaded" and seconds is not None and seconds < _KNOWN_WITHIN * gap:
            seconds = None  # a load of 3 s that samples at a distance of 5 s saw
        return Change(model, event, previous, seconds)

    def models_after_server_end(self, working: AbstractSet[str] = frozenset()) -> list[ServedModel]:
        """Return all models in their states after the end of the server.

        One that was loading has failed, and one that was processing requests crashed: a server that ends in
        the middle of requests ends them with errors.

        Args:
            working: names of the models that processed requests in the newest sample.
        """
        return [
            replace(
                one.model,
                state="failed"
                if one.model.state == "loading" or (one.model.state == "loaded" and name in working)
                else _without_process(one.model).state,
            )
            for name, one in (self._last_states or {}).items()
        ]

    def waking_models(self, models: Sequence[ServedModel]) -> list[str]:
        """Return the names of the models that wake: their process is still the one that went to sleep."""
        last = self._last_states or {}
        return [m.name for m in models if (before := last.get(m.name)) and _is_waking(before, m)]

    def reported_models(self) -> list[ServedModel]:
        """Return every model that the server has ever reported, with its last state."""
        return [one.model for one in (self._last_states or {}).values()]

    def writes(
        self, timestamp: int, changes: Iterable[Change], build: int | None, outcome: str | None = None
    ) -> list[Write]:
        """Return the rows of some changes: their events, and the runs that end with them.

        Args:
            timestamp: Unix seconds of the sample.
            changes: the changes that `compare` returned.
            build: build number of the server.
            outcome: outcome of all runs that end; None = as the events say.
        """
        written: list[Write] = []
        for change in changes:
            model, run = change.model, self._runs.current(self._server, change.model.name)
            if run and model.state not in _IN_MEMORY:
                ended_as = (
                    change.event if change.event == "crashed" else outcome or change.event or model.state
                )
                written += self._runs.end(self._server, model.name, timestamp, ended_as, model.exit_code)
            if change.event:
                written.append(MODEL_EVENTS.insert(self._row(timestamp, change, run, build)))
        return written

    def _row(self, timestamp: int, change: Change, run: Run | None, build: int | None) -> Row:
        model, row = change.model, self._models.find(change.model)
        values: dict[str, SqlValue] = {
            "timestamp": timestamp,
            "model": model.name,
            "model_id": row.id if row else None,
            "event": change.event,
            "state": model.state,
            "previous_state": change.previous_state,
            "seconds_since_last": change.seconds,
            "exit_code": model.exit_code,
            "model_path": model.path,
            "context_size": model.context_size,
            "build": build,
            "server": self._server,
            "run_id": run.id if run else None,
            "evidence": "sampling",
        }
        return MODEL_EVENTS.row(values)

    def _read_last_states(self) -> dict[str, _LastState]:
        if self._last_states is None:
            now, wall = self._clock(), time.time()
            self._last_states = {
                row["model"]: _LastState(
                    ServedModel(row["model"], row["model_path"], row["state"]),
                    now - (wall - row["timestamp"]),
                )
                for row in self._runs.query(_LAST_EVENTS, (self._server,))
            }
        return self._last_states


def _event(before: ModelState | None, after: ModelState, *, is_evicted: bool) -> str | None:
    """Return the name of the event of a change; None if it is not an event.

    Args:
        before: previous state; None if it is not known.
        after: new state.
        is_evicted: whether the router had to unload the model to load another one.
    """
    was_loaded = before in ("loaded", "sleeping")
    match after:
        case "loaded":
            return "woke" if before == "sleeping" else "loaded"
        case "failed":
            return "crashed" if was_loaded else "failed"
        case "unloaded":
            if before not in _IN_MEMORY:
                return None
            return "evicted" if is_evicted and was_loaded else "unloaded"
    return after


def _evicted_models(
    last: Mapping[str, _LastState],
    models: Sequence[ServedModel],
    max_loaded: int,
    used_at: Mapping[str, float],
) -> AbstractSet[str]:
    """Return the names of the models that the router unloaded since the previous sample to load others.

    It does so if it has as many models in memory as it may, and it unloads the one that was not used for the
    longest time. Example with a limit of 2: `a` and `b` were loaded, now `a` is unloaded and `c` is loading.
    If `a` was used less recently than `b`, it was evicted. Otherwise the user unloaded it before.
    """
    in_memory = {name for name, one in last.items() if one.model.state in _IN_MEMORY}
    loads = sum(_was_loaded(last, model) for model in models)
    if not max_loaded or len(in_memory) < max_loaded or not loads:
        return frozenset()
    staying = {model.name for model in models if model.state in _IN_MEMORY} & in_memory
    oldest = min((used_at.get(name, 0.0) for name in staying), default=float("inf"))
    left = sorted(in_memory - staying, key=lambda name: used_at.get(name, 0.0))
    return {name for name in left if used_at.get(name, 0.0) <= oldest}


def _is_waking(before: _LastState, model: ServedModel) -> bool:
    """Return whether a sleeping model loads again in the same process, whose port is the same.

    Whether it was another process in spite of that is known when the model is loaded: see `ServerRuns`.
    """
    if before.model.state != "sleeping" or model.state != "loading":
        return False
    ports = [option(one.arguments, "--port") for one in (before.model, model)]
    return None in ports or ports[0] == ports[1]


def _is_changed(before: _LastState, model: ServedModel, restarted: AbstractSet[str]) -> bool:
    """Return whether a model has another state than in the previous sample, or another process."""
    if _is_replaced(before, model, restarted):
        return True
    return before.model.state != model.state and not _is_waking(before, model)


def _is_replaced(before: _LastState, model: ServedModel, restarted: AbstractSet[str]) -> bool:
    """Return whether another process serves a model than in the previous sample, in which it was loaded."""
    if before.model.state not in ("loaded", "sleeping"):
        return False
    if model.state == "loading":
        return not _is_waking(before, model)
    return model.state in ("loaded", "sleeping") and model.name in restarted


def _without_process(model: ServedModel) -> ServedModel:
    """Return a model in its state after the end of its process; one that had failed stays failed."""
    state: ModelState = "unloaded" if model.state in _IN_MEMORY else model.state
    return ServedModel(model.name, model.path, state)


def _was_loaded(last: Mapping[str, _LastState], model: ServedModel) -> bool:
    """Return whether the server began to load a model since the previous sample, even if it failed."""
    before = last.get(model.name)
    if before is None:
        return model.state in _IN_MEMORY
    return model.state != "unloaded" and before.model.state not in (*_IN_MEMORY, model.state)
