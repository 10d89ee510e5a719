"""The SQLite file: connection, schema migration, buffer, writer and repositories."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collector.database.database import Database

__all__ = ["Database"]


def __getattr__(name: str) -> object:
    """Import `Database` on first use: commands that only read need neither it nor its libraries."""
    if name == "Database":
        from collector.database.database import Database

        return Database
    raise AttributeError(name)
