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
        Column("context_size", "INTEGER", "label", "context of one slot, tokens; NULL = it is not loaded"),
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

_OCCUPYING = ("loading", "loaded", "sleeping")
"""States in which a model counts against a router's maximum of loaded models."""

_LAST_EVENTS = (
    "SELECT model, state, timestamp, model_path FROM model_events "
    "WHERE id IN (SELECT max(id) FROM model_events WHERE server = ? GROUP BY model)"
)


@dataclass(frozen=True, slots=True)
class Change:
    """A change of a model's state.

    Args:
        model: with its new state.
        event: its name; None for a change that is no event, such as a first sight of an unloaded model.
        previous_state: None where it is not known.
        seconds: how long the model had its previous state; None where that is not known.
    """

    model: ServedModel
    event: str | None
    previous_state: ModelState | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class _Known:
    """A model's last state, and since when it has it, in seconds of the clock since boot."""

    model: ServedModel
    since: float | None


class ModelEvents:
    """Compares the models of one server with those of the sample before.

    In the first sample of a collector it compares with the last events in the database.

    Args:
        server: name of the server.
        models: the rows of `models`.
        runs: the processes that serve models.
        clock: seconds that nobody sets.
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
        self._known: dict[str, _Known] | None = None

    def compare(self, models: Sequence[ServedModel], max_loaded: int | None) -> list[Change]:
        """Return what has changed since the last sample; a model that is not reported any more is unloaded.

        Args:
            models: what the server reports.
            max_loaded: how many models it keeps loaded; None or 0 = no maximum.

        Raises:
            DatabaseBusy: in the first sample, while another program holds a lock; nothing was compared.
        """
        known = self._last_known()
        present = {model.name for model in models}
        gone = [_after_end(k.model) for name, k in known.items() if name not in present]
        is_full = bool(max_loaded) and sum(k.model.state in _OCCUPYING for k in known.values()) >= (
            max_loaded or 0
        )
        evicting = is_full and any(_newly_occupies(known, model) for model in models)
        changes = []
        for model in (*gone, *models):
            before = known.get(model.name)
            if before and before.model.state == model.state:
                continue
            now = self._clock()
            previous = before.model.state if before else None
            seconds = max(0.0, now - before.since) if before and before.since is not None else None
            # How long a model has had the state in which it is seen first is not known.
            known[model.name] = _Known(model, now if before else None)
            changes.append(Change(model, _event(previous, model.state, evicting=evicting), previous, seconds))
        return changes

    def models_after_end(self) -> list[ServedModel]:
        """Return all models as they are when their server has gone: what was loading has failed."""
        return [
            replace(k.model, state="failed" if k.model.state == "loading" else _after_end(k.model).state)
            for k in (self._known or {}).values()
        ]

    def known_models(self) -> list[ServedModel]:
        """Return the last state of every model that the server has reported."""
        return [k.model for k in (self._known or {}).values()]

    def writes(
        self, timestamp: int, changes: Iterable[Change], build: int | None, outcome: str | None = None
    ) -> list[Write]:
        """Return what must be written of some changes: the events, and the runs that ended with them.

        Args:
            timestamp: Unix seconds of the sample.
            changes: in their order.
            build: the server's build number.
            outcome: how all runs ended; None = as the events say.
        """
        written: list[Write] = []
        for change in changes:
            model, run = change.model, self._runs.current(self._server, change.model.name)
            if run and model.state not in _OCCUPYING:
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

    def _last_known(self) -> dict[str, _Known]:
        if self._known is None:
            now, wall = self._clock(), time.time()
            self._known = {
                row["model"]: _Known(
                    ServedModel(row["model"], row["model_path"], row["state"]),
                    now - (wall - row["timestamp"]),
                )
                for row in self._runs.query(_LAST_EVENTS, (self._server,))
            }
        return self._known


def _event(before: ModelState | None, after: ModelState, *, evicting: bool) -> str | None:
    was_up = before in ("loaded", "sleeping")
    match after:
        case "loaded":
            return "woke" if before == "sleeping" else "loaded"
        case "failed":
            return "crashed" if was_up else "failed"
        case "unloaded":
            if before not in _OCCUPYING:
                return None
            return "evicted" if evicting and was_up else "unloaded"
    return after


def _after_end(model: ServedModel) -> ServedModel:
    state: ModelState = "unloaded" if model.state in _OCCUPYING else model.state
    return ServedModel(model.name, model.path, state)


def _newly_occupies(known: dict[str, _Known], model: ServedModel) -> bool:
    """Return whether a model was loaded since the last sample, or failed to."""
    before = known.get(model.name)
    if before is None:
        return model.state in _OCCUPYING
    return model.state != "unloaded" and before.model.state not in (*_OCCUPYING, model.state)
