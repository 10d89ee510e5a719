"""Which history a backup belongs to, and how much of it the backup contains.

A name proves nothing: the clock may have been wrong when it was given, two hosts may share a directory, and
a database that was lost and begun anew has the same name as the one before. So a database has the id of its
history and of its host in `metadata`, and of two backups of one history the newer one is that with more rows
ever inserted.

A restored database begins a history of its own: its next rows are others than those that followed in the old
one. Version 0.1.0 stored no ids; its backups count as backups of every history.
"""

import uuid
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from collector.database import Database
from collector.database.connection import connect_read_only, fetch, translate_sqlite_errors
from collector.database.repositories.base import Connected, Record
from collector.errors import DatabaseError

HISTORY_KEY, HOST_KEY = "historyId", "hostId"
"""Keys in `metadata`."""

_MACHINE_ID = Path("/etc/machine-id")

_IDS = (
    "SELECT (SELECT value FROM metadata WHERE key = 'historyId') AS history, "
    "(SELECT value FROM metadata WHERE key = 'hostId') AS host, "
    "(SELECT coalesce(sum(seq), 0) FROM sqlite_sequence) AS inserted, "
    "(SELECT timestamp FROM metrics ORDER BY id DESC LIMIT 1) AS newest"
)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a database or backup says about itself.

    Args:
        history: id of its history; None where version 0.1.0 wrote it, or it cannot be read.
        host: id of its host; None if not known.
        inserted_rows: number of rows ever inserted; -1 where it cannot be read.
        newest_sample: Unix seconds of the sample that was inserted last; 0 = none.
    """

    history: str | None = None
    host: str | None = None
    inserted_rows: int = -1
    newest_sample: int = 0

    def may_belong_to(self, history: str | None) -> bool:
        """Return whether it is of this history, as far as is known."""
        return self.history is None or history is None or self.history == history


def ensure_identity(database: Database) -> None:
    """Store the ids of history and host in the database that this process writes, if they are missing.

    Raises:
        DatabaseError: it cannot be read or written.
    """
    host = read_host_id()
    stored = read_identity(database)
    if stored.history is None:
        database.meta.set(HISTORY_KEY, uuid.uuid4().hex)
    if host is not None and stored.host != host:
        database.meta.set(HOST_KEY, host)


def read_identity(database: Connected) -> Identity:
    """Return the identity of an open database.

    Raises:
        DatabaseError: it cannot be read.
    """
    return _identity(database.query(_IDS)[0])


def read_file_identity(path: Path) -> Identity:
    """Return the identity of a backup; one that cannot be read is older than all others."""
    try:
        with closing(connect_read_only(path)) as connection, translate_sqlite_errors(path):
            return _identity(fetch(connection, _IDS)[0])
    except DatabaseError:
        return Identity()


def _identity(row: Record) -> Identity:
    ids = [value.strip('"') if isinstance(value := row[name], str) else None for name in ("history", "host")]
    newest = row["newest"] if isinstance(row["newest"], int) else 0
    return Identity(ids[0], ids[1], int(row["inserted"]), newest)


def read_host_id() -> str | None:
    """Return an id of this machine, a digest of systemd's machine id; None if it has none."""
    try:
        machine = _MACHINE_ID.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return sha256(f"llama-collector {machine}".encode()).hexdigest()[:16] if machine else None
