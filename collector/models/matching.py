"""The match of models with rows: which row of `models` belongs to which model, and what must change in it."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, NamedTuple

from collector.database.repositories.models import new_model_id
from collector.models.header_reader import Answer
from collector.models.inventory import Inventory, Model, model_name
from collector.models.storage import ModelFile, ModelRow, StoredInventory

_NULLABLE = ("quantization", "params")
"""Columns that become NULL where the header has no value. The others then keep their value."""


@dataclass(frozen=True, slots=True)
class RowChanges:
    """What is to be written into `models`.

    Args:
        model_ids: of every model, by the path of the file that describes it.
        inserted: new rows, complete except for the documented defaults.
        updated: the changed columns, by id.
    """

    model_ids: Mapping[str, str]
    inserted: Sequence[Mapping[str, Any]]
    updated: Mapping[str, Mapping[str, Any]]


class _Match(NamedTuple):
    """A model with its row.

    Args:
        model: the model.
        row: its row.
        before: the file that the row belonged to; None where another program made the row.
    """

    model: Model
    row: ModelRow
    before: ModelFile | None

    def changed_columns(self) -> dict[str, Any]:
        """Return size, path and name where they differ from the row.

        Name and path are kept as other programs set them for as long as the path leads to the file.
        """
        columns: dict[str, Any] = {}
        file, before = self.model.file, self.before
        if self.row.file_size != self.model.file_size:
            columns["file_size"] = self.model.file_size
        if before and before.found_at != file.found_at and _resolve(self.row.model_path) != file.path:
            columns["model_path"] = file.found_at
            if self.row.name == model_name(before.found_at):  # no other program changed it
                columns["name"] = self.model.name
        return columns


_Candidate = tuple[Model, str | None, ModelFile | None]
"""A model, the id of a row that may be its row, and the file that the row belonged to."""


def match_rows(
    inventory: Inventory,
    answers: Mapping[str, Answer],
    stored: StoredInventory,
    gone: Mapping[str, ModelFile],
    now: int,
) -> RowChanges:
    """Find the row of every model, and what must change in it; a model without a row gets a new one.

    Args:
        inventory: the models that were found.
        answers: contents of the files that were read in this scan, by path.
        stored: what the database contains.
        gone: the stored files that were deleted or moved, by path.
        now: Unix seconds.
    """
    matches = _Matcher(inventory.files, stored, gone).find_matches(inventory.models)
    model_ids: dict[str, str] = {}
    inserted: list[dict[str, Any]] = []
    updated: dict[str, dict[str, Any]] = {}
    for model in inventory.models:
        path = model.file.path
        header = answers[path].columns if path in answers else {}
        columns = {key: value for key, value in header.items() if value is not None or key in _NULLABLE}
        if match := matches.get(path):
            model_ids[path] = match.row.id
            if changed := columns | match.changed_columns():
                updated[match.row.id] = changed
        else:
            model_ids[path] = new_model_id(now)
            described = {"name": model.name, "model_path": model.file.found_at, "file_size": model.file_size}
            inserted.append(columns | described | {"id": model_ids[path], "created_at": now})
    return RowChanges(model_ids, inserted, updated)


@dataclass(frozen=True, slots=True)
class _Matcher:
    """The rules that find the rows of models. Each rule yields candidates, the best ones of a model first.

    Args:
        files: the files that were found, by path.
        stored: what the database contains.
        gone: the stored files that were deleted or moved, by path.
    """

    files: Mapping[str, ModelFile]
    stored: StoredInventory
    gone: Mapping[str, ModelFile]

    def find_matches(self, models: Sequence[Model]) -> dict[str, _Match]:
        """Return every model that has a row with its row, by the path of the model's file.

        Each rule is applied to all models before the next, weaker one: a file that moved claims its row
        before the new file that now has its old path. Of the candidates of one model the first is used whose
        row exists and belongs to no other model.
        """
        matches: dict[str, _Match] = {}
        used: set[str] = set()
        for rule in (
            self.unchanged_files,
            self.moved_files,
            self.changed_files,
            self.rows_of_other_programs,
            self.copied_files,
        ):
            unmatched = [model for model in models if model.file.path not in matches]
            if not unmatched:
                break
            for model, row_id, before in rule(unmatched, used):
                row = self.stored.rows.get(row_id) if row_id else None
                if row and row.id not in used and model.file.path not in matches:
                    matches[model.file.path] = _Match(model, row, before)
                    used.add(row.id)
        return matches

    def unchanged_files(self, models: Iterable[Model], _used: AbstractSet[str]) -> Iterator[_Candidate]:
        """Same path, size and modification time as at the last scan."""
        for model in models:
            before = self.stored.files.get(model.file.path)
            if before is not None and before.is_unchanged(model.file):
                yield model, before.model_id, before

    def moved_files(self, models: Iterable[Model], _used: AbstractSet[str]) -> Iterator[_Candidate]:
        """Same inode, size and modification time at another path: the file was renamed.

        Also where a new file now has the old path: `m.gguf` was renamed to `old.gguf`, and another `m.gguf`
        was downloaded. The row of the first file goes with it to `old.gguf`.
        """
        by_identity = defaultdict(list)
        for path, before in self.stored.files.items():
            found = self.files.get(path)
            if before.describes_model and not (found and before.is_unchanged(found)):
                by_identity[before.inode, before.size_bytes, before.modified_ns].append(before)
        for model in models:
            file = model.file
            for before in by_identity.get((file.inode, file.size_bytes, file.modified_ns), ()):
                yield model, before.model_id, before

    def changed_files(self, models: Iterable[Model], _used: AbstractSet[str]) -> Iterator[_Candidate]:
        """Same path, other content: the model was downloaded or converted again."""
        for model in models:
            before = self.stored.files.get(model.file.path)
            if before is not None:
                yield model, before.model_id, before

    def rows_of_other_programs(self, models: Iterable[Model], used: AbstractSet[str]) -> Iterator[_Candidate]:
        """A row that another program made for the file; of several such rows the oldest."""
        by_path: dict[str, list[str]] = defaultdict(list)
        for row in self.stored.rows.values():
            if row.id not in used and (path := _resolve(row.model_path)):
                by_path[path].append(row.id)
        for model in models:
            for row_id in by_path.get(model.file.path, ()):
                yield model, row_id, None

    def copied_files(self, models: Iterable[Model], _used: AbstractSet[str]) -> Iterator[_Candidate]:
        """Size and modification time of a file that is gone: it was moved to another disk, as `mv` does.

        A file of the same name is preferred.
        """
        for model in models:
            candidates = [
                before
                for before in self.gone.values()
                if before.describes_model and before.is_unchanged(model.file)
            ]
            candidates.sort(key=lambda before: model_name(before.found_at) != model.name)
            for before in candidates:
                yield model, before.model_id, before


def _resolve(path: str | None) -> str | None:
    """Return an absolute path with its symbolic links resolved; None for anything else."""
    return os.path.realpath(path) if path and path.startswith("/") and "\0" not in path else None
