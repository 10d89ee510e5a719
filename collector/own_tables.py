"""All tables beside the documented ones: every open of the database brings them up to date."""

from collector.health import COLLECTOR_HEALTH
from collector.jobs.scan_models import MODEL_FILES
from collector.sources.log_reader import LOG_POSITIONS
from collector.sources.registry import SOURCE_TABLES
from collector.table import Table

OWN_TABLES: tuple[Table, ...] = (*SOURCE_TABLES, MODEL_FILES, LOG_POSITIONS, COLLECTOR_HEALTH)
