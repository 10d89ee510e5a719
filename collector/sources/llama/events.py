"""The table `model_events`: one row for each change of the state of a model."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from collector.parsers.server_answers import ModelState, ServedModel
from collector.schema import AUTOMATIC_ID, Column, Index, Row, SqlValue, Table, Write
from collector.sources.llama.model_rows import ModelIndex
from collector.sources.llama.run_table import Run
from collector.sources.llama.runs import ServerRuns

MODEL_EVENTS = Table(
    "model_events",
    "One row per change of the state of a model, as llama-server reported it.",
    (
        Column("id", AUTOMATIC_ID, "key", "ascending"),
        Column(
            "timestamp", "INTEGER NOT NULL", "time", "Unix seconds of the first sample with the new state"
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
            "how long the model was in its previous state; after `loading`: how long loading took",
        ),
        Column("exit_code", "INTEGER", "label", "exit code of its process, after failed and crashed"),
        Column("model_path", "TEXT", "label", "path of its file, as configured on the server"),
        Column("context_size", "INTEGER", "label", "context of one slot, tokens, while it is loaded"),
        Column("build", "INTEGER", "label", "build number of llama-server; NULL = not reported"),
        Column("server", "TEXT", "label", "server of the model: its listening address"),
        Column("run_id", "INTEGER", "key", "server_runs.id of the process that serves, or served, the model"),
    ),
    (
        Index("idx_model_events_timestamp", "timestamp DESC"),
        Index("idx_model_events_server", "server, model"),
    ),
    retired_indexes=("idx_model_events_model",),  # of version 0.1.0
)

_IN_MEMORY = ("loading", "loaded", "sleeping")
"""States in which a model counts towards --models-max of a router."""

_LAST_EVENTS = (
    "SELECT model, state, timestamp, model_path FROM model_events "
    "WHERE id IN (SELECT max(id) FROM model_events WHERE server = ? GROUP BY model)"
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

    def compare(self, models: Sequence[ServedModel], max_loaded: int | None) -> list[Change]:
        """Return the changes since the previous sample. A model that is not reported any more is unloaded.

        A model was evicted, and not only unloaded, if the router had as many models in memory as it may, and
        another model was loaded in the same interval. Example with --models-max 2: `a` and `b` were loaded,
        now `a` is unloaded and `c` is loading: `a` was evicted.

        Args:
            models: all models that the server reports.
            max_loaded: how many models it keeps loaded; None or 0 = no limit.

        Raises:
            DatabaseBusy: another program holds a lock, and the stored events were not read yet; nothing was
                compared.
        """
        last = self._read_last_states()
        present = {model.name for model in models}
        gone = [_without_process(one.model) for name, one in last.items() if name not in present]
        is_full = bool(max_loaded) and sum(one.model.state in _IN_MEMORY for one in last.values()) >= (
            max_loaded or 0
        )
        evicting = is_full and any(_was_loaded(last, model) for model in models)
        changes = []
        for model in (*gone, *models):
            before = last.get(model.name)
            if before and before.model.state == model.state:
                continue
            now = self._clock()
            previous = before.model.state if before else None
            seconds = max(0.0, now - before.since) if before and before.since is not None else None
            last[model.name] = _LastState(model, now if before else None)
            changes.append(Change(model, _event(previous, model.state, evicting=evicting), previous, seconds))
        return changes

    def models_after_server_end(self) -> list[ServedModel]:
        """Return all models in their states after the end of the server: one that was loading has failed."""
        return [
            replace(
                one.model,
                state="failed" if one.model.state == "loading" else _without_process(one.model).state,
            )
            for one in (self._last_states or {}).values()
        ]

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
                ended_as = outcome or change.event or model.state
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


def _event(before: ModelState | None, after: ModelState, *, evicting: bool) -> str | None:
    """Return the name of the event of a change; None if it is not an event.

    Args:
        before: previous state; None if it is not known.
        after: new state.
        evicting: whether the router had to unload a model in this interval to load another one.
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
            return "evicted" if evicting and was_loaded else "unloaded"
    return after


def _without_process(model: ServedModel) -> ServedModel:
    """Return a model in its state after the end of its process; one that had failed stays failed."""
    state: ModelState = "unloaded" if model.state in _IN_MEMORY else model.state
    return ServedModel(model.name, model.path, state)


def _was_loaded(last: dict[str, _LastState], model: ServedModel) -> bool:
    """Return whether the server began to load a model since the previous sample, even if it failed."""
    before = last.get(model.name)
    if before is None:
        return model.state in _IN_MEMORY
    return model.state != "unloaded" and before.model.state not in (*_IN_MEMORY, model.state)
