"""The SQLite file: its tables, its one writing connection, and the documented repositories."""

from collector.database.database import Database

__all__ = ["Database"]
