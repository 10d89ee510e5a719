"""Which row of `models` belongs to which model on the disk, and what must change in it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from collector.database.models import new_model_id
from collector.jobs.header_reader import Answer
from collector.jobs.model_inventory import Inventory, Model, describes_model, is_unchanged, model_name
from collector.jobs.model_records import FileRecord, ModelRow, Remembered

_MAY_BECOME_NULL = ("quantization", "params")
"""Of the other columns a row keeps what it has where the file does not say: their default is no NULL."""


@dataclass(slots=True)
class RowChanges:
    """What is to be written into `models`.

    Args:
        inserted: new rows, complete but for the documented defaults.
        updated: columns to be changed, by id.
        removed: ids of rows whose file is gone.
        in_use: ids of all rows whose model is there.
    """

    inserted: list[dict[str, Any]] = field(default_factory=list)
    updated: dict[str, dict[str, Any]] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    in_use: set[str] = field(default_factory=set)


def match_rows(
    inventory: Inventory,
    answers: Mapping[str, Answer],
    known: Remembered,
    gone: Mapping[str, FileRecord],
    now: int,
) -> RowChanges:
    """Give every model its row, and note its id in the inventory.

    A model has the row of its last scan, else the row that another program made for its file, else the row
    of a file that is gone and was the same: it moved. Else it gets a new one.

    Args:
        inventory: what lies there.
        answers: what was read in this scan.
        known: what the database holds.
        gone: the records of files that are no more.
        now: Unix seconds.
    """
    return _Matching(inventory, answers, known, gone).take(now)


class _Matching:
    def __init__(
        self,
        inventory: Inventory,
        answers: Mapping[str, Answer],
        known: Remembered,
        gone: Mapping[str, FileRecord],
    ) -> None:
        self._inventory = inventory
        self._answers = answers
        self._known = known
        self._movable = [r for r in gone.values() if r.model_id in known.models and describes_model(r)]
        self._changes = RowChanges()

    def take(self, now: int) -> RowChanges:
        strangers = []
        for model in self._inventory.models:
            if row := self._row(model.record):
                self._use(model, row, self._known.records.get(model.record.path))
            else:
                strangers.append(model)
        by_path = self._unused_rows_by_path() if strangers else {}
        for model in strangers:
            if row := by_path.pop(model.record.path, None):
                self._use(model, row, None)
            elif (before := self._moved(model)) and (row := self._row(before)):
                self._use(model, row, before)
            else:
                self._insert(model, now)
        return self._changes

    def _row(self, record: FileRecord) -> ModelRow | None:
        return self._known.models.get(record.model_id) if record.model_id else None

    def _unused_rows_by_path(self) -> dict[str, ModelRow]:
        """Of several rows of one file the oldest."""
        rows = [row for row in self._known.models.values() if row.id not in self._changes.in_use]
        return {
            os.path.realpath(row.model_path): row
            for row in reversed(rows)
            if row.model_path and row.model_path.startswith("/") and "\0" not in row.model_path
        }

    def _moved(self, model: Model) -> FileRecord | None:
        """The record of the same file at its former place: of equal size and time, at best inode and name."""
        candidates = [r for r in self._movable if is_unchanged(model.record, r)]
        if not candidates:
            return None
        best = max(
            candidates, key=lambda r: (r.inode == model.record.inode, model_name(r.found_at) == model.name)
        )
        self._movable.remove(best)
        return best

    def _use(self, model: Model, row: ModelRow, before: FileRecord | None) -> None:
        self._changes.in_use.add(row.id)
        if model.record.model_id != row.id:
            model.record = model.record._replace(model_id=row.id)
            self._inventory.records[model.record.path] = model.record
        if columns := self._changed_columns(model, row, before):
            self._changes.updated[row.id] = columns

    def _changed_columns(self, model: Model, row: ModelRow, before: FileRecord | None) -> dict[str, Any]:
        """What the file says. Name and path stay what others made of them while the path is right."""
        columns = self._told_columns(model)
        if row.file_size != model.file_size:
            columns["file_size"] = model.file_size
        if before and before.found_at != model.record.found_at and not os.path.exists(row.model_path or ""):  # noqa: PTH110
            columns["model_path"] = model.record.found_at
            if row.name == model_name(before.found_at):
                columns["name"] = model.name
        return columns

    def _insert(self, model: Model, now: int) -> None:
        row_id = new_model_id(now)
        self._changes.in_use.add(row_id)
        self._inventory.records[model.record.path] = model.record._replace(model_id=row_id)
        named = {"id": row_id, "name": model.name, "model_path": model.record.found_at}
        self._changes.inserted.append(self._told_columns(model) | named | {"file_size": model.file_size})

    def _told_columns(self, model: Model) -> dict[str, Any]:
        """What its header says, if it was read in this scan."""
        answer = self._answers.get(model.record.path)
        columns = answer.columns.items() if answer else ()
        return {name: value for name, value in columns if value is not None or name in _MAY_BECOME_NULL}
