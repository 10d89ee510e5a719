"""All tables and views of the collector, and how its database is opened for writing."""

from pathlib import Path

from collector.database.database import Database
from collector.database.documented import DOCUMENTED_TABLES
from collector.health import COLLECTOR_HEALTH, COLLECTOR_RUNS
from collector.logs.reader import LOG_POSITIONS
from collector.logs.rows.requests import REQUESTS
from collector.logs.rows.router_events import ROUTER_EVENTS
from collector.models.storage import MODEL_FILES
from collector.schema import Table
from collector.sources.registry import SOURCE_TABLES
from collector.views import VIEWS

__all__ = ["OWN_TABLES", "TABLES", "VIEWS", "open_database"]

OWN_TABLES: tuple[Table, ...] = (
    *SOURCE_TABLES,
    REQUESTS,
    ROUTER_EVENTS,
    MODEL_FILES,
    LOG_POSITIONS,
    COLLECTOR_HEALTH,
    COLLECTOR_RUNS,
)
"""The tables beside the documented ones."""

TABLES: tuple[Table, ...] = (*DOCUMENTED_TABLES, *OWN_TABLES)
"""Every table, in the order of creation."""


def open_database(path: Path) -> Database:
    """Open the database for writing, and create or migrate every table and view.

    Raises:
        DatabaseInUse: another collector writes it.
        DatabaseError: it is not a database, damaged, read-only, or was created for another purpose.
    """
    return Database(path, OWN_TABLES, VIEWS)
