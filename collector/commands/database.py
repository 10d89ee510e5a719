"""How the commands that write into the database open it."""

from collections.abc import Iterator
from contextlib import contextmanager

from collector import events
from collector.catalog import open_database
from collector.database import Database
from collector.errors import DatabaseInUse
from collector.settings import Settings


@contextmanager
def open_with_events(settings: Settings, in_use_hint: str) -> Iterator[Database]:
    """Open the database for the block; events of the command are stored in its `logs`.

    Args:
        settings: name the database and the format of events.
        in_use_hint: sentence that follows the error message if a collector runs.

    Raises:
        DatabaseInUse: a collector runs.
        DatabaseError: the database cannot be used.
    """
    try:
        database = open_database(settings.database_path)
    except DatabaseInUse as error:
        raise DatabaseInUse(f"{error} {in_use_hint}") from error
    with database:
        events.configure(
            settings.logging.level,
            settings.logging.format,
            lambda level, text: database.logs.add(level, text, "collector"),
        )
        yield database
