"""Which row of `models` belongs to which model on the disk, and what must change in it."""

import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from collector.database.repositories.models import new_model_id
from collector.models.header_reader import Answer
from collector.models.inventory import Inventory, Model, describes_model, is_unchanged, model_name
from collector.models.records import FileRecord, ModelRow, Remembered

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

    A model has the row of its last scan, also at another path; else the row that another program made for
    its file; else the row of a file that is gone and was the same. Else it gets a new one.

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
        self._gone = gone
        self._changes = RowChanges()

    def take(self, now: int) -> RowChanges:
        """Each kind of claim is heard for all models before the next weaker one."""
        claims = [self._same_file, self._moved_file, self._same_path, self._row_of_others, self._copied_file]
        models = self._inventory.models
        for claim in claims:
            models = [model for model in models if not claim(model)]
        for model in models:
            self._insert(model, now)
        return self._changes

    def _same_file(self, model: Model) -> bool:
        """The file is as it was."""
        before = self._known.records.get(model.record.path)
        return before is not None and is_unchanged(model.record, before) and self._use(model, before)

    def _moved_file(self, model: Model) -> bool:
        """The very file, at another path: even where that path now holds another file."""
        return any(self._use(model, before) for before in self._vacated.get(_identity(model.record), ()))

    def _same_path(self, model: Model) -> bool:
        """Another file at the same path."""
        before = self._known.records.get(model.record.path)
        return before is not None and self._use(model, before)

    def _row_of_others(self, model: Model) -> bool:
        row = self._unused_rows.pop(model.record.path, None)
        return row is not None and self._use_row(model, row, None)

    def _copied_file(self, model: Model) -> bool:
        """A file that is gone and was of equal size and time: moved between disks; at best of one name."""
        candidates = [r for r in self._gone.values() if describes_model(r) and is_unchanged(model.record, r)]
        candidates.sort(key=lambda before: model_name(before.found_at) != model.name)
        return any(self._use(model, before) for before in candidates)

    @cached_property
    def _vacated(self) -> dict[tuple[int, int, int], list[FileRecord]]:
        """Records of files that are not where they were."""
        vacated = defaultdict(list)
        for path, record in self._known.records.items():
            if describes_model(record) and not is_unchanged(record, self._inventory.records.get(path)):
                vacated[_identity(record)].append(record)
        return vacated

    @cached_property
    def _unused_rows(self) -> dict[str, ModelRow]:
        """Rows of files that no scan has seen, by path; of several rows of one file the oldest."""
        rows = [row for row in self._known.models.values() if row.id not in self._changes.in_use]
        return {path: row for row in reversed(rows) if (path := _resolved(row.model_path))}

    def _use(self, model: Model, before: FileRecord) -> bool:
        row = self._known.models.get(before.model_id) if before.model_id else None
        return row is not None and row.id not in self._changes.in_use and self._use_row(model, row, before)

    def _use_row(self, model: Model, row: ModelRow, before: FileRecord | None) -> bool:
        self._changes.in_use.add(row.id)
        if model.record.model_id != row.id:
            model.record = model.record._replace(model_id=row.id)
            self._inventory.records[model.record.path] = model.record
        if columns := self._changed_columns(model, row, before):
            self._changes.updated[row.id] = columns
        return True

    def _changed_columns(self, model: Model, row: ModelRow, before: FileRecord | None) -> dict[str, Any]:
        """What the file says. Name and path stay what others made of them while the path is right."""
        columns = self._told_columns(model)
        if row.file_size != model.file_size:
            columns["file_size"] = model.file_size
        if (
            before
            and before.found_at != model.record.found_at
            and _resolved(row.model_path) != model.record.path
        ):
            columns["model_path"] = model.record.found_at
            if row.name == model_name(before.found_at):
                columns["name"] = model.name
        return columns

    def _insert(self, model: Model, now: int) -> None:
        row_id = new_model_id(now)
        self._changes.in_use.add(row_id)
        self._inventory.records[model.record.path] = model.record._replace(model_id=row_id)
        named = {"id": row_id, "name": model.name, "model_path": model.record.found_at, "created_at": now}
        self._changes.inserted.append(self._told_columns(model) | named | {"file_size": model.file_size})

    def _told_columns(self, model: Model) -> dict[str, Any]:
        """What its header says, if it was read in this scan."""
        answer = self._answers.get(model.record.path)
        columns = answer.columns.items() if answer else ()
        return {name: value for name, value in columns if value is not None or name in _MAY_BECOME_NULL}


def _identity(record: FileRecord) -> tuple[int, int, int]:
    return record.inode, record.size_bytes, record.modified_ns


def _resolved(path: str | None) -> str | None:
    """An absolute path with its symbolic links resolved; None where it is no such path."""
    return os.path.realpath(path) if path and path.startswith("/") and "\0" not in path else None
