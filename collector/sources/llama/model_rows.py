"""The rows of `models` that belong to the models of servers, and their status."""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePath

from collector.database.database import Database
from collector.errors import DatabaseError
from collector.parsers.server_answers import ModelState, ServedModel
from collector.schema import Write

REFRESH_SECONDS = 60
UNKNOWN_REFRESH_SECONDS = 10

DOCUMENTED_STATUS: Mapping[ModelState, str] = {
    "unloaded": "unloaded",
    "loading": "loading",
    "loaded": "loaded",
    "sleeping": "idle",
    "failed": "error",
}
"""`models.status` of a state."""


@dataclass(slots=True)
class ModelRow:
    """A row of `models`: its id and status, and the path of its file with symbolic links resolved."""

    id: str
    name: str
    status: str | None
    path: str | None


class ModelIndex:
    """The rows of `models` by path, else by name; one index serves all servers.

    The table is read again when a model is not found, and now and then: scans and other programs change it.

    Args:
        database: None for an index without rows.
        clock: seconds, ever increasing.
    """

    def __init__(self, database: Database | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._read_at = float("-inf")
        self._rows: list[ModelRow] = []
        self._found: dict[tuple[str, str | None], ModelRow | None] = {}

    @property
    def rows(self) -> Sequence[ModelRow]:
        """All rows, as last read."""
        self._refresh(REFRESH_SECONDS)
        return self._rows

    def find(self, model: ServedModel) -> ModelRow | None:
        """Return the row of a model; None where it has none."""
        key = (model.name, model.path)
        self._refresh(REFRESH_SECONDS if self._found.get(key) else UNKNOWN_REFRESH_SECONDS)
        if key in (found := self._found):
            return found[key]
        row = found[key] = self._search(model)
        return row

    def add_missing(self, models: Iterable[ServedModel]) -> None:
        """Save a row for each model that has none, so that every `model_id` refers to a row.

        Rows are saved at once, not through the buffer: a scan may save the same file at this moment, and only
        inside a transaction it is certain which of the two did. While another program holds a lock, or the
        disk is full, nothing is saved; the next tick tries again, and until then `model_id` is NULL.
        """
        missing = [model for model in models if self.find(model) is None]
        if not missing or self._database is None:
            return
        with suppress(DatabaseError), self._database.transaction():
            self._refresh(0)
            for model in missing:
                if self._search(model) is None:
                    self._save(self._database, model)
            self._found = {}  # replaced, not cleared: another server's thread may be reading it

    def _save(self, database: Database, model: ServedModel) -> None:
        name = PurePath(model.path).stem if model.path else model.name
        status = DOCUMENTED_STATUS[model.state]
        saved = database.models.save({"name": name, "model_path": model.path, "status": status})
        self._rows.append(ModelRow(saved["id"], name, status, _resolved(model.path)))

    def _refresh(self, seconds: float) -> None:
        """Read the table again unless that was done within the last seconds."""
        if self._database is None or self._clock() - self._read_at < seconds:
            return
        with suppress(DatabaseError):  # what was read before is used until then
            rows = self._database.query(
                "SELECT id, name, status, model_path FROM models ORDER BY created_at, id"
            )
            self._rows = [
                ModelRow(row["id"], row["name"], row["status"], _resolved(row["model_path"])) for row in rows
            ]
            self._found = {}
            self._read_at = self._clock()

    def _search(self, model: ServedModel) -> ModelRow | None:
        path = _resolved(model.path)
        by_path = (row for row in self._rows if path and row.path == path)
        by_name = (row for row in self._rows if row.name == model.name and not (path and row.path))
        return next(by_path, None) or next(by_name, None)


def _resolved(path: str | None) -> str | None:
    """Resolve symbolic links; a relative path, which depends on the server's directory, stays as it is."""
    return os.path.realpath(path) if path and os.path.isabs(path) else path  # noqa: PTH117


_BEST_FIRST = ("loaded", "loading", "idle", "error", "unloaded")
_UPDATE = "UPDATE models SET status = ?, updated_at = ? WHERE id = ?"


class ModelStatuses:
    """Combines what several servers report of the same models: the best state counts.

    A model that one server has loaded and another one unloaded is loaded. With a status per server, the two
    would overwrite each other in turn.

    Args:
        models: the rows of `models`.
        servers: names of all servers that will report.
    """

    def __init__(self, models: ModelIndex, servers: Sequence[str]) -> None:
        self._models = models
        self._reported: dict[str, dict[str, str]] = {}
        self._silent = set(servers)

    def update(self, server: str, timestamp: int, models: Sequence[ServedModel]) -> list[Write]:
        """Record what one server reports; return what must be written.

        Rows that are loaded in the database and that no server reports were left so by an earlier collector:
        once every server has reported they become unloaded.

        Args:
            server: its name.
            timestamp: Unix seconds of the sample.
            models: all its models, those that have just ended included.
        """
        self._silent.discard(server)
        self._reported[server] = {
            row.id: DOCUMENTED_STATUS[model.state] for model in models if (row := self._models.find(model))
        }
        changes: list[Write] = []
        for row in self._models.rows:
            status = self._best(row)
            if status is None and row.status in ("loaded", "loading") and not self._silent:
                status = "unloaded"
            if status not in (None, row.status):
                row.status = status
                changes.append(Write(_UPDATE, ((status, timestamp, row.id),)))
        return changes

    def _best(self, row: ModelRow) -> str | None:
        reported = [statuses[row.id] for statuses in self._reported.values() if row.id in statuses]
        return min(reported, key=_BEST_FIRST.index, default=None)
