"""Which row of `models` belongs to a model that the server names."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from collector.errors import DatabaseBusy
from collector.parsers.server_answers import ServedModel

Query = Callable[[str, Sequence[object]], list[dict[str, Any]]]
"""Gives the rows of a SELECT as dictionaries."""

REFRESH_SECONDS = 60
UNKNOWN_REFRESH_SECONDS = 10


@dataclass(slots=True)
class ModelRow:
    """What is needed of a row: its id, its status, its file with symbolic links resolved."""

    id: str
    name: str
    status: str | None
    path: str | None


class ModelIndex:
    """The rows of `models` by path, else by name. Reads the table when it knows too little, and now and then.

    Args:
        query: reads the database.
        clock: seconds, ever increasing.
    """

    def __init__(self, query: Query, clock: Callable[[], float] = time.monotonic) -> None:
        self._query = query
        self._clock = clock
        self._read_at = float("-inf")
        self._rows: list[ModelRow] = []
        self._added: list[ModelRow] = []
        self._found: dict[tuple[str, str | None], ModelRow | None] = {}

    @property
    def rows(self) -> Sequence[ModelRow]:
        """All rows, as last read."""
        self._refresh(REFRESH_SECONDS)
        return self._rows

    def find(self, model: ServedModel) -> ModelRow | None:
        """The row of a model; None where it has none."""
        key = (model.name, model.path)
        self._refresh(REFRESH_SECONDS if self._found.get(key) else UNKNOWN_REFRESH_SECONDS)
        if key not in self._found:
            self._found[key] = self._search(model)
        return self._found[key]

    def add(self, model: ServedModel, row: ModelRow) -> None:
        """Remember a row that is about to be written."""
        self._added.append(row)
        self._rows.append(row)
        self._found[model.name, model.path] = row

    def _refresh(self, seconds: float) -> None:
        if self._clock() - self._read_at < seconds:
            return
        with suppress(DatabaseBusy):  # then what was read before serves on
            rows = self._query("SELECT id, name, status, model_path FROM models ORDER BY created_at, id", ())
            read = [ModelRow(row["id"], row["name"], row["status"], _real(row["model_path"])) for row in rows]
            ids = {row.id for row in read}
            self._added = [row for row in self._added if row.id not in ids]  # not committed yet
            self._rows = read + self._added
            self._found.clear()
            self._read_at = self._clock()

    def _search(self, model: ServedModel) -> ModelRow | None:
        path = _real(model.path)
        by_path = (row for row in self._rows if path and row.path == path)
        by_name = (row for row in self._rows if row.name == model.name and not (path and row.path))
        return next(by_path, None) or next(by_name, None)


def _real(path: str | None) -> str | None:
    """The path with symbolic links resolved. A relative one is the server's own business: as it stands."""
    return os.path.realpath(path) if path and os.path.isabs(path) else path  # noqa: PTH117
