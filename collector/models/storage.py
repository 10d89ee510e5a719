"""The table `model_files`: what earlier scans found, so that unchanged files are not opened again."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from collector.database import Database
from collector.models.walk import FoundFile, part_of
from collector.schema import Column, Row, Table

MODEL_FILES = Table(
    "model_files",
    "One row per .gguf file that a scan has read: what it is, and how to detect that it has changed.",
    (
        Column(
            "path",
            "TEXT PRIMARY KEY",
            "key",
            "its path, symbolic links resolved; bytes where it is not UTF-8",
        ),
        Column("found_at", "TEXT NOT NULL", "label", "the path under which it was found"),
        Column("size_bytes", "INTEGER NOT NULL", "gauge", "its size"),
        Column("modified_ns", "INTEGER NOT NULL", "text", "its last change, nanoseconds since 1970"),
        Column("inode", "INTEGER NOT NULL", "label", "its inode number"),
        Column("disk", "TEXT NOT NULL", "label", "mount point and identity of its disk"),
        Column(
            "verdict", "TEXT NOT NULL", "state", "model, part (of a model in several files), other, broken"
        ),
        Column(
            "reason",
            "TEXT NOT NULL",
            "text",
            "what else it is, what is wrong with it, which parts are missing",
        ),
        Column("model_id", "TEXT", "key", "models.id; of several parts the first has it"),
    ),
)


class ModelFile(NamedTuple):
    """One row of `model_files`: the fields of a `FoundFile`, and what the file is."""

    path: str
    found_at: str
    size_bytes: int
    modified_ns: int
    inode: int
    disk: str
    verdict: str
    reason: str
    model_id: str | None

    def is_unchanged(self, found: "FoundFile | ModelFile") -> bool:
        """Return whether a file that was found has the size and modification time of this one."""
        return self.modified_ns == found.modified_ns and self.size_bytes == found.size_bytes

    @property
    def describes_model(self) -> bool:
        """Whether a row of `models` belongs to the file: it is a whole model, or part 1 of several."""
        if self.verdict == "part":
            part = part_of(self.found_at)
            return part is not None and part[1] == 1
        return self.verdict == "model"


class ModelRow(NamedTuple):
    """The columns of `models` that a scan compares."""

    id: str
    name: str
    model_path: str | None
    file_size: int | None
    status: str | None = None


@dataclass(frozen=True, slots=True)
class StoredInventory:
    """What the database contains at the start of a scan.

    Args:
        files: rows of `model_files`, by path.
        rows: rows of `models`, by id, the oldest first.
    """

    files: Mapping[str, ModelFile]
    rows: Mapping[str, ModelRow]

    def is_current(self, found: FoundFile, *, retried: bool = False) -> bool:
        """Return whether the content of a file is stored, so that the file need not be read.

        It is not if another program has deleted the row of the model: the columns are read again.

        Args:
            found: the file.
            retried: whether files that were not understood are read again.
        """
        file = self.files.get(found.path)
        if file is None or not file.is_unchanged(found):
            return False
        if retried and file.verdict in ("broken", "other"):
            return False
        return not file.describes_model or file.model_id in self.rows


def read_inventory(database: Database) -> StoredInventory:
    """Read what earlier scans and other programs have stored."""
    columns = ", ".join(ModelFile._fields)
    files = {}
    for row in database.query(f"SELECT {columns} FROM model_files"):  # noqa: S608 - our own names
        path, found_at, *rest = row.values()
        file = ModelFile(os.fsdecode(path), os.fsdecode(found_at), *rest)
        files[file.path] = file
    rows = database.query(
        "SELECT id, name, model_path, file_size, status FROM models ORDER BY created_at, id"
    )
    return StoredInventory(files, {row["id"]: ModelRow(**row) for row in rows})


def store_files(database: Database, changed: Iterable[ModelFile], gone: Iterable[str]) -> None:
    """Write rows of `model_files`, and delete those of the paths in `gone`."""
    with database.transaction() as connection:
        connection.executemany("DELETE FROM model_files WHERE path = ?", [(_stored(path),) for path in gone])
        rows: list[Row] = [(_stored(file.path), _stored(file.found_at), *file[2:]) for file in changed]
        connection.executemany(MODEL_FILES.replace_statement, rows)


def is_utf8(path: str) -> bool:
    """Return whether a path can be stored as text: Linux allows file names of any bytes."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _stored(path: str) -> str | bytes:
    """Return a path as it is stored: text, or bytes where it is not UTF-8."""
    return path if is_utf8(path) else os.fsencode(path)
