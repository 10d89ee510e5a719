"""Each model's story: rows of `model_events`, and `models.status`."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from collector.database.repositories.models import new_model_id
from collector.errors import DatabaseBusy
from collector.parsers.server_answers import ModelState, ServedModel
from collector.schema import AUTOMATIC_ID, Column, Index, SqlValue, Table, Write
from collector.sources.llama.model_index import ModelIndex, ModelRow, Query

MODEL_EVENTS = Table(
    "model_events",
    "One row a change of a model's state, as llama-server told it.",
    (
        Column("id", AUTOMATIC_ID, "key", "ascending"),
        Column("timestamp", "INTEGER NOT NULL", "time", "Unix seconds of the sample that saw it"),
        Column("model", "TEXT NOT NULL", "label", "the server's name for it"),
        Column("model_id", "TEXT", "key", "models.id"),
        Column(
            "event",
            "TEXT NOT NULL",
            "label",
            "loading, loaded, sleeping, woke, unloaded, evicted, failed, crashed",
        ),
        Column("state", "TEXT NOT NULL", "state", "since then: loading, loaded, sleeping, unloaded, failed"),
        Column("previous_state", "TEXT", "state", "until then; NULL = not known"),
        Column(
            "seconds_since_last",
            "REAL",
            "gauge",
            "how long it had its previous state; `loading`: what the load took",
        ),
        Column("exit_code", "INTEGER", "label", "of its process, after failed and crashed"),
        Column("model_path", "TEXT", "label", "the file, as the server was told"),
        Column("context_size", "INTEGER", "gauge", "tokens, while it is loaded"),
        Column("build", "INTEGER", "label", "llama-server's build number; NULL = it does not know its own"),
    ),
    (
        Index("idx_model_events_timestamp", "timestamp DESC"),
        Index("idx_model_events_model", "model, timestamp DESC"),
    ),
)

DOCUMENTED_STATUS: dict[ModelState, str] = {
    "unloaded": "unloaded",
    "loading": "loading",
    "loaded": "loaded",
    "sleeping": "idle",
    "failed": "error",
}
"""What `models.status` calls a state."""

_OCCUPYING = ("loading", "loaded", "sleeping")
"""States in which a model takes one of a router's places."""

_LAST_EVENTS = (
    "SELECT model, state, timestamp, model_path FROM model_events "
    "WHERE id IN (SELECT max(id) FROM model_events GROUP BY model)"
)
_UPDATE_STATUS = "UPDATE models SET status = ?, updated_at = ? WHERE id = ?"
_INSERT_MODEL = (
    "INSERT INTO models (id, name, model_path, status, created_at, updated_at) SELECT ?, ?, ?, ?, ?, ? "
    "WHERE NOT EXISTS (SELECT 1 FROM models WHERE coalesce(model_path = ?, name = ?))"
)  # a scan may have met the file in the meantime


@dataclass(slots=True)
class _Known:
    """A model's last state, and since when it has it."""

    model: ServedModel
    since: float | None


class ModelHistory:
    """Compares what the server says with what it said before; the first time, with what the database holds.

    Args:
        query: reads the database.
        index: the rows of `models`.
    """

    def __init__(self, query: Query, index: ModelIndex) -> None:
        self._query = query
        self._index = index
        self._known: dict[str, _Known] | None = None

    def follow(
        self, timestamp: int, models: Sequence[ServedModel], build: int | None, places: int | None
    ) -> list[Write]:
        """Take all models of one sample; a model that is not among them is unloaded.

        Args:
            timestamp: Unix seconds of the sample.
            models: what the server says.
            build: its build number.
            places: how many models it keeps loaded; None or 0 where there is no bound.

        Returns:
            what must be written.
        """
        try:
            known = self._remembered()
        except DatabaseBusy:
            return []  # the next look compares again
        present = {model.name for model in models}
        gone = [_ended(k.model) for name, k in known.items() if name not in present]
        evicting = _is_full(known, places) and any(_takes_a_place(known, model) for model in models)
        everything = (*gone, *models)
        changes: list[Write] = []
        for model in everything:
            changes += self._status(timestamp, model)  # first: an event names the row
            changes += self._change(timestamp, model, build, evicting=evicting)
        return changes + self._forgotten(timestamp, everything)

    def server_ended(self, timestamp: int) -> list[Write]:
        """The server is down: nothing is loaded any more, and what was loading has failed to."""
        known = self._known or {}
        loading = [one.model for one in known.values() if one.model.state == "loading"]
        failed = [ServedModel(model.name, model.path, "failed") for model in loading]
        return self.follow(timestamp, failed, None, None)

    def _remembered(self) -> dict[str, _Known]:
        if self._known is None:
            self._known = {
                row["model"]: _Known(
                    ServedModel(row["model"], row["model_path"], row["state"]), row["timestamp"]
                )
                for row in self._query(_LAST_EVENTS, ())
            }
        return self._known

    def _change(
        self, timestamp: int, model: ServedModel, build: int | None, *, evicting: bool
    ) -> list[Write]:
        known = self._remembered()
        before = known.get(model.name)
        if before and before.model.state == model.state:
            return []
        now = time.time()
        # How long it has had its first state is not known.
        known[model.name] = _Known(model, now if before else None)
        event = _event(before.model.state if before else None, model.state, evicting=evicting)
        if event is None:
            return []
        row = self._index.find(model)
        values: dict[str, SqlValue] = {
            "timestamp": timestamp,
            "model": model.name,
            "model_id": row.id if row else None,
            "event": event,
            "state": model.state,
            "previous_state": before.model.state if before else None,
            "seconds_since_last": max(0.0, now - before.since) if before and before.since else None,
            "exit_code": model.exit_code,
            "model_path": model.path,
            "context_size": model.context_size,
            "build": build,
        }
        return [MODEL_EVENTS.insert(MODEL_EVENTS.row(values))]

    def _status(self, timestamp: int, model: ServedModel) -> list[Write]:
        """Bring `models.status` up to date; a model without a row gets one, of what is known."""
        row, status = self._index.find(model), DOCUMENTED_STATUS[model.state]
        if row is None:
            name = PurePath(model.path).stem if model.path else model.name
            row = ModelRow(new_model_id(timestamp), name, status, model.path)
            self._index.add(model, row)
            values = (row.id, name, model.path, status, timestamp, timestamp, model.path, name)
            return [Write(_INSERT_MODEL, (values,))]
        if row.status == status:
            return []
        row.status = status
        return [Write(_UPDATE_STATUS, ((status, timestamp, row.id),))]

    def _forgotten(self, timestamp: int, models: Sequence[ServedModel]) -> list[Write]:
        """Rows that still say loaded, from a server that this one does not know of."""
        told = {row.id for model in models if (row := self._index.find(model))}
        changes = []
        for row in self._index.rows:
            if row.status in ("loaded", "loading") and row.id not in told:
                row.status = "unloaded"
                changes.append(Write(_UPDATE_STATUS, (("unloaded", timestamp, row.id),)))
        return changes


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


def _ended(model: ServedModel) -> ServedModel:
    state: ModelState = "unloaded" if model.state in _OCCUPYING else model.state
    return ServedModel(model.name, model.path, state)


def _is_full(known: dict[str, _Known], places: int | None) -> bool:
    return bool(places) and sum(k.model.state in _OCCUPYING for k in known.values()) >= (places or 0)


def _takes_a_place(known: dict[str, _Known], model: ServedModel) -> bool:
    """Whether it came up since the last look, or failed to."""
    before = known.get(model.name)
    if before is None:
        return model.state in _OCCUPYING
    return model.state != "unloaded" and before.model.state not in (*_OCCUPYING, model.state)
