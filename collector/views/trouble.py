"""Errors, and times without samples."""

from collector.schema import View, ViewColumn
from collector.views.periods import hours_of, local_time, time_columns

ERRORS_BY_HOUR = View(
    "errors_by_hour",
    "What went wrong, when and where? One row an hour and source that logged something.",
    (
        *time_columns("began", "of the hour's beginning"),
        ViewColumn("source", "source", "llama-server, a model's name, or collector"),
        ViewColumn("errors", "sum(level IN ('error', 'critical'))", "of level error or critical"),
        ViewColumn("warnings", "sum(level = 'warn')", "of level warn"),
        ViewColumn("records", "count(1)", "of all levels"),
    ),
    """
    FROM period CROSS JOIN logs WHERE logs.timestamp >= began AND logs.timestamp < ended
    GROUP BY began, source""",
    hours_of("logs"),
)

_USUAL_SECONDS = (
    "max(1, min(coalesce(last.timestamp - earlier.timestamp, later.timestamp - first.timestamp), "
    "coalesce(later.timestamp - first.timestamp, last.timestamp - earlier.timestamp)))"
)


def _neighbour(name: str, relation: str, of: str, order: str) -> str:
    """Return the JOIN of the nearest sample before or after another one."""
    return f"""metrics AS {name} ON {name}.id = (
      SELECT id FROM metrics AS one WHERE one.timestamp {relation} {of}.timestamp
      ORDER BY one.timestamp {order} LIMIT 1)"""


GAPS = View(
    "gaps",
    "When was nothing sampled? One row a pause over three times as long as the shorter of those beside it.",
    (
        *time_columns("first.timestamp", "of the first sample after it"),
        ViewColumn("began", "last.timestamp", "Unix seconds of the last sample before it"),
        ViewColumn(
            "began_local_time", local_time("last.timestamp"), "the same, in the time zone of the reader"
        ),
        ViewColumn("seconds", "first.timestamp - last.timestamp", "how long it lasted"),
        ViewColumn(
            "missing_samples",
            f"(first.timestamp - last.timestamp) / {_USUAL_SECONDS} - 1",
            "how many there would have been",
        ),
    ),
    f"""
    FROM metrics AS first
    JOIN {_neighbour("last", "<", "first", "DESC")}
    LEFT JOIN {_neighbour("earlier", "<", "last", "DESC")}
    LEFT JOIN {_neighbour("later", ">", "first", "ASC")}
    WHERE first.timestamp - last.timestamp > 3 * {_USUAL_SECONDS}
      AND first.id = (SELECT min(id) FROM metrics AS one WHERE one.timestamp = first.timestamp)""",
)
