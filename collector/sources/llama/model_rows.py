"""The rows of `models` of the models that servers report, and their column `status`."""

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePath

from collector.database.database import Database
from collector.database.repositories.models import ModelsRepository
from collector.errors import DatabaseError
from collector.parsers.command_line import option
from collector.parsers.server_answers import ModelState, ServedModel
from collector.schema import Write

REFRESH_SECONDS = 60
"""How often the table is read again: scans and other programs change it."""

MISSING_REFRESH_SECONDS = 10
"""How often it is read again to find a model that has no row."""

MAX_ROWS = 5000
"""Rows of `models` up to which servers add further ones: a router may report other names in each sample."""

DOCUMENTED_STATUS: Mapping[ModelState, str] = {
    "unloaded": "unloaded",
    "loading": "loading",
    "loaded": "loaded",
    "sleeping": "idle",
    "failed": "error",
}
"""Value of `models.status` for each state."""


Options = tuple[int | None, int | None, int | None]
"""Context of one slot, threads and batch size; None for one that is not known."""

_CHANGE_OPTIONS = (
    "UPDATE models SET ctx_size = coalesce(?, ctx_size), threads = coalesce(?, threads), "
    "batch_size = coalesce(?, batch_size), updated_at = ? WHERE id = ?"
)


@dataclass(slots=True)
class ModelRow:
    """A row of `models`.

    Args:
        id: its id.
        name: its name.
        status: its status.
        path: the path of its file, with symbolic links resolved.
        options: its columns `ctx_size`, `threads` and `batch_size`.
    """

    id: str
    name: str
    status: str | None
    path: str | None
    options: Options = (None, None, None)


class ModelIndex:
    """A cache of the rows of `models`, which finds the row of a model by path, else by name.

    Args:
        database: the database; None for an index without rows.
        clock: returns the seconds of a monotonic clock.
    """

    def __init__(self, database: Database | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._read_at = float("-inf")
        self._rows: list[ModelRow] = []
        self._by_path: dict[str, ModelRow] = {}
        self._by_name: dict[str, list[ModelRow]] = {}
        self._found: dict[tuple[str, str | None], ModelRow | None] = {}

    @property
    def rows(self) -> Sequence[ModelRow]:
        """All rows, at most `REFRESH_SECONDS` old."""
        self._refresh(REFRESH_SECONDS)
        return self._rows

    def find(self, model: ServedModel) -> ModelRow | None:
        """Return the row of a model; None if it has none."""
        key = (model.name, model.path)
        self._refresh(REFRESH_SECONDS if self._found.get(key) else MISSING_REFRESH_SECONDS)
        if key in (found := self._found):
            return found[key]
        row = found[key] = self._search(model)
        return row

    def add_missing(self, models: Iterable[ServedModel]) -> None:
        """Save a row for each model that has none, so that every `model_id` refers to a row.

        The rows are not written through the buffer: a scan may save a row of the same file at the same time.
        The transaction prevents that both do so, because the table is read again inside it. While another
        program holds a lock, or the disk is full, nothing is saved; `model_id` is NULL until a later tick
        succeeds. The same applies while the table has `MAX_ROWS` rows.
        """
        models = tuple(models)
        self._forget_deleted(models)
        missing = [model for model in models if self.find(model) is None]
        if not missing or self._database is None:
            return
        with suppress(DatabaseError), self._database.transaction():
            self._refresh(0)
            for model in missing:
                if self._search(model) is None and len(self._rows) < MAX_ROWS:
                    name = PurePath(model.path).stem if model.path else model.name
                    values = {
                        "name": name,
                        "model_path": model.path,
                        "status": DOCUMENTED_STATUS[model.state],
                    }
                    saved = self._database.models.save(values)
                    self._append(ModelRow(saved["id"], name, values["status"], _resolve_links(model.path)))
            self._found = {}  # replaced, not cleared: another server's thread may be reading it

    def _forget_deleted(self, models: Sequence[ServedModel]) -> None:
        """Read the table again if the row of a model that is in memory was deleted.

        A scan deletes the row of a deleted file, which a server may still have loaded: its samples must not
        refer to a row that does not exist.
        """
        found = (self._found.get((model.name, model.path)) for model in models if model.state != "unloaded")
        ids = {row.id for row in found if row}
        if self._database is None or not ids:
            return
        statement = f"SELECT count(*) AS n FROM models WHERE id IN ({', '.join('?' * len(ids))})"  # noqa: S608 - only placeholders
        with suppress(DatabaseError):
            if self._database.query(statement, tuple(ids))[0]["n"] < len(ids):
                self._refresh(0)

    def _refresh(self, seconds: float) -> None:
        """Read the table again if it was last read at least this many seconds ago."""
        if self._database is None or self._clock() - self._read_at < seconds:
            return
        with suppress(DatabaseError):  # the rows that were read before are used until a later call succeeds
            rows = self._database.query(
                "SELECT id, name, status, model_path, ctx_size, threads, batch_size FROM models "
                "ORDER BY created_at, id"
            )
            self._rows, self._by_path, self._by_name = [], {}, {}
            for row in rows:
                path = _resolve_links(row["model_path"])
                options = (row["ctx_size"], row["threads"], row["batch_size"])
                self._append(ModelRow(row["id"], row["name"], row["status"], path, options))
            self._found = {}
            self._read_at = self._clock()

    def _append(self, row: ModelRow) -> None:
        self._rows.append(row)
        if row.path:
            self._by_path.setdefault(row.path, row)
        self._by_name.setdefault(row.name, []).append(row)

    def _search(self, model: ServedModel) -> ModelRow | None:
        path = _resolve_links(model.path)
        if path and path in self._by_path:
            return self._by_path[path]
        by_name = self._by_name.get(model.name, ())
        return next((row for row in by_name if not (path and row.path)), None)


def _resolve_links(path: str | None) -> str | None:
    """Return a path without symbolic links.

    A relative path is returned unchanged, because the working directory of the server is not known.
    """
    return os.path.realpath(path) if path and os.path.isabs(path) else path  # noqa: PTH117


_BEST_FIRST = ("loaded", "loading", "idle", "error", "unloaded")


class ModelStatuses:
    """The column `models.status`, combined from the states that several servers report of the same model.

    Example: one server has a model loaded, and another one lists it as unloaded. The status is `loaded`, as
    the best state counts. If each server wrote its own state, the two would overwrite each other at every
    tick.

    Args:
        models: the rows of `models`.
        servers: names of all servers that call `update`.
    """

    def __init__(self, models: ModelIndex, servers: Sequence[str]) -> None:
        self._models = models
        self._reported: dict[str, dict[str, str]] = {}
        self._not_reported = set(servers)
        self._options: dict[tuple[str, str], Options] = {}

    def update(self, server: str, timestamp: int, models: Sequence[ServedModel]) -> list[Write]:
        """Store the states that one server reports; return the rows of `models` whose status changes.

        A row may be loaded that no server reports: an earlier collector stopped before the model was
        unloaded. It becomes unloaded as soon as every server has reported once.

        Args:
            server: name of the server.
            timestamp: Unix seconds of the sample.
            models: all models that it has ever reported, with their states.
        """
        self._not_reported.discard(server)
        self._reported[server] = {
            row.id: DOCUMENTED_STATUS[model.state] for model in models if (row := self._models.find(model))
        }
        changes: list[Write] = []
        for row in self._models.rows:
            states = [statuses[row.id] for statuses in self._reported.values() if row.id in statuses]
            status = min(states, key=_BEST_FIRST.index, default=None)
            if status is None and row.status in ("loaded", "loading") and not self._not_reported:
                status = "unloaded"
            if status not in (None, row.status):
                row.status = status
                changes.append(ModelsRepository.status_change(row.id, status, timestamp))
        return changes

    def record_options(self, server: str, timestamp: int, models: Iterable[ServedModel]) -> list[Write]:
        """Return the rows of loaded models whose context, threads or batch size the server reports otherwise.

        What the server does not report keeps its value, at first the documented default. A value is written
        when a report changes, not whenever it differs from the row: another server may have loaded the same
        model with other options.

        Args:
            server: name of the server.
            timestamp: Unix seconds of the sample.
            models: the models that it reports now.
        """
        changes: list[Write] = []
        reported: dict[tuple[str, str], Options] = {}
        for model in models:
            if model.state != "loaded" or (row := self._models.find(model)) is None:
                continue
            options = (
                model.context_size,
                _positive(option(model.arguments, "--threads", "-t")),
                _positive(option(model.arguments, "--batch-size", "-b")),
            )
            reported[server, row.id] = options
            if self._options.get((server, row.id)) == options:
                continue
            known = zip(options, row.options, strict=True)
            if any(new is not None and new != old for new, old in known):
                changes.append(Write(_CHANGE_OPTIONS, [(*options, timestamp, row.id)]))
        others = {key: options for key, options in self._options.items() if key[0] != server}
        self._options = others | reported
        return changes


def _positive(value: str | None) -> int | None:
    """Return a positive number of an option; None for any other value, such as -1 for "automatic"."""
    return int(value) if value and re.fullmatch("[1-9][0-9]{0,8}", value) else None
