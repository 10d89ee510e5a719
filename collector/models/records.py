"""What scans remember of every file, so that they need not open it again."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from collector.database import Database
from collector.schema import Column, Row, Table

MODEL_FILES = Table(
    "model_files",
    "One row a .gguf file that a scan has read: what it is, and how to see that it has changed.",
    (
        Column(
            "path",
            "TEXT PRIMARY KEY",
            "key",
            "where it lies, symbolic links resolved; bytes where it is not UTF-8",
        ),
        Column("found_at", "TEXT NOT NULL", "label", "the name under which it was found"),
        Column("size_bytes", "INTEGER NOT NULL", "gauge", "its size"),
        Column("modified_ns", "INTEGER NOT NULL", "text", "its last change, nanoseconds since 1970"),
        Column("inode", "INTEGER NOT NULL", "label", "its number on its disk"),
        Column("disk", "TEXT NOT NULL", "label", "where its disk is mounted, and which disk it is"),
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


class FileRecord(NamedTuple):
    """One row of `model_files`."""

    path: str
    found_at: str
    size_bytes: int
    modified_ns: int
    inode: int
    disk: str
    verdict: str
    reason: str
    model_id: str | None

    def row(self) -> Row:
        """As it is stored."""
        return (_stored(self.path), _stored(self.found_at), *self[2:])


class ModelRow(NamedTuple):
    """What a scan needs of a row of `models`."""

    id: str
    name: str
    model_path: str | None
    file_size: int | None


@dataclass(frozen=True, slots=True)
class Remembered:
    """What the database holds.

    Args:
        records: of files, by path.
        models: by id, the oldest first.
    """

    records: dict[str, FileRecord]
    models: dict[str, ModelRow]


def remembered(database: Database) -> Remembered:
    """Everything that earlier scans and other programs have noted."""
    files = database.query(f"SELECT {', '.join(FileRecord._fields)} FROM model_files")  # noqa: S608 - our own
    models = database.query("SELECT id, name, model_path, file_size FROM models ORDER BY created_at, id")
    records = (_record(list(row.values())) for row in files)
    return Remembered({r.path: r for r in records}, {row["id"]: ModelRow(**row) for row in models})


def store_records(database: Database, changed: Iterable[FileRecord], gone: Iterable[str]) -> None:
    """Write records, and remove those of some paths."""
    with database.transaction() as connection:
        connection.executemany("DELETE FROM model_files WHERE path = ?", [(_stored(path),) for path in gone])
        connection.executemany(MODEL_FILES.replace_statement, [record.row() for record in changed])


def is_storable(path: str) -> bool:
    """Whether a path is text: not every name of a file is UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _stored(path: str) -> str | bytes:
    return path if is_storable(path) else os.fsencode(path)


def _record(values: Sequence[Any]) -> FileRecord:
    path, found_at, *rest = values
    return FileRecord(os.fsdecode(path), os.fsdecode(found_at), *rest)
