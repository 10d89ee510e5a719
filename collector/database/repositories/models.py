"""The models repository."""

import ast
import json
import secrets
import string
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from collector.database.documented import MODELS
from collector.database.repositories.base import Record, Repository
from collector.schema import Write

_RANDOM_LETTERS = string.ascii_lowercase + string.digits
_DEFAULTS: Record = {
    column.name: ast.literal_eval(default)  # numbers and quoted texts are written alike in SQL and Python
    for column in MODELS.columns
    if (default := column.declaration.partition("DEFAULT ")[2])
}
_COLUMNS = tuple(column.name for column in MODELS.columns)
_UPDATABLE = frozenset(_COLUMNS) - {"id", "created_at", "updated_at"}
_JSON_COLUMNS = ("parameters", "params")

_SAVE = (
    MODELS.insert_statement
    + " ON CONFLICT(id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS if name not in ("id", "created_at"))
)  # not REPLACE: a column that we do not know keeps its value
_CHANGE_STATUS = "UPDATE models SET status = ?, updated_at = ? WHERE id = ?"


class ModelsRepository(Repository):
    """Model rows: created by scans and by other programs, kept by id."""

    table = MODELS

    def get_all(self) -> list[Record]:
        """Return all models, newest first."""
        return self._database.query("SELECT * FROM models ORDER BY created_at DESC, id DESC")

    def get_by_id(self, model_id: str) -> Record | None:
        """Return the model with this id, or None."""
        rows = self._database.query("SELECT * FROM models WHERE id = ?", (model_id,))
        return rows[0] if rows else None

    def get_favorites(self) -> list[Record]:
        """Return the models marked as favourite, sorted by name."""
        return self._database.query("SELECT * FROM models WHERE favorite = 1 ORDER BY name, id")

    def save(self, model: Mapping[str, Any]) -> Record:
        """Insert a model, or replace the one with its id.

        Missing fields get the documented defaults, unknown ones are ignored, `created_at` of an existing
        row stays, `updated_at` becomes the current time. `parameters` and `params` may be objects; they are
        stored as JSON.

        Returns:
            the stored row.

        Raises:
            ValueNotStorable: a value does not fit its column, or there is no name.
        """
        now = int(time.time())
        given = {name: value for name, value in model.items() if name in _COLUMNS and value is not None}
        values: Record = dict.fromkeys(_COLUMNS) | _DEFAULTS | {"created_at": now} | _with_json(given)
        values["id"] = values["id"] or new_model_id(now)
        values["updated_at"] = now
        with self._write(values) as connection:
            connection.execute(_SAVE, MODELS.row(values))
        saved = self.get_by_id(values["id"])
        assert saved is not None
        return saved

    def update(self, model_id: str, updates: Mapping[str, Any]) -> Record | None:
        """Change the given fields of one model; unknown fields are ignored.

        Returns:
            the changed row, or None if there is no such model or no field to change.

        Raises:
            ValueNotStorable: a value does not fit its column.
        """
        values = _with_json({name: value for name, value in updates.items() if name in _UPDATABLE})
        if not values:
            return None
        assignments = ", ".join(f"{name} = ?" for name in values)
        with self._write(values) as connection:
            changed = connection.execute(
                f"UPDATE models SET {assignments}, updated_at = ? WHERE id = ?",  # noqa: S608 - known names
                (*values.values(), int(time.time()), model_id),
            ).rowcount
        return self.get_by_id(model_id) if changed else None

    @staticmethod
    def status_change(model_id: str, status: str, timestamp: int) -> Write:
        """Return the write of a new status, for the buffer: it is committed with the samples that saw it.

        Args:
            model_id: id of the model.
            status: the new status.
            timestamp: Unix seconds of the sample, for `updated_at`.
        """
        return Write(_CHANGE_STATUS, [(status, timestamp, model_id)])

    def delete(self, model_id: str) -> bool:
        """Delete one model; return whether it existed."""
        with self._database.transaction() as connection:
            return connection.execute("DELETE FROM models WHERE id = ?", (model_id,)).rowcount > 0

    def cleanup_missing_files(self) -> int:
        """Delete, in one transaction, every model whose file does not exist, and return their number.

        A row without a path names no file and stays.
        """
        with self._database.transaction() as connection:
            paths = connection.execute("SELECT id, model_path FROM models WHERE model_path IS NOT NULL")
            missing = [(model_id,) for model_id, path in paths.fetchall() if not Path(path).exists()]
            connection.executemany("DELETE FROM models WHERE id = ?", missing)
        return len(missing)


def new_model_id(now: int) -> str:
    """Return a new id: `model_{timestamp}_{random}`."""
    return f"model_{now}_{''.join(secrets.choice(_RANDOM_LETTERS) for _ in range(9))}"


def _with_json(values: Record) -> Record:
    """Return the values with objects of the JSON columns encoded as text."""
    encoded = {
        name: json.dumps(values[name], ensure_ascii=False)
        for name in _JSON_COLUMNS
        if isinstance(values.get(name), dict | list)
    }
    return values | encoded
