"""Errors per hour, and periods without samples."""

from collector.schema import View, ViewColumn
from collector.views.periods import hours_of, local_time, time_columns

ERRORS_BY_HOUR = View(
    "errors_by_hour",
    "How many errors were logged, when and by which source? One row per hour and source that logged "
    "something.",
    (
        *time_columns("began", "of the start of the hour"),
        ViewColumn(
            "source", "source", "source of the log records: llama-server, the name of a model, or collector"
        ),
        ViewColumn("errors", "sum(level IN ('error', 'critical'))", "log records of level error or critical"),
        ViewColumn("warnings", "sum(level = 'warn')", "log records of level warn"),
        ViewColumn("records", "count(1)", "log records of all levels"),
    ),
    """
    FROM period CROSS JOIN logs WHERE logs.timestamp >= began AND logs.timestamp < ended
    GROUP BY began, source""",
    hours_of("logs"),
)

# SQLite's min() is NULL if one argument is: coalesce() replaces the interval that does not exist at the start
# and at the end of the table by the other one.
_USUAL_SECONDS = (
    "max(1, min(coalesce(last.timestamp - earlier.timestamp, later.timestamp - first.timestamp), "
    "coalesce(later.timestamp - first.timestamp, last.timestamp - earlier.timestamp)))"
)


def _neighbour(name: str, relation: str, of: str, order: str) -> str:
    """Return the JOIN of the sample right before or right after another one.

    Args:
        name: alias of the joined sample.
        relation: `<` for the sample before, `>` for the one after.
        of: alias of the other sample.
        order: DESC for the sample before, ASC for the one after.
    """
    return f"""metrics AS {name} ON {name}.id = (
      SELECT id FROM metrics AS one WHERE one.timestamp {relation} {of}.timestamp
      ORDER BY one.timestamp {order} LIMIT 1)"""


# The samples around a gap, in order of time: earlier, last | gap | first, later. The shorter of the intervals
# earlier to last and first to later counts as usual. Example: samples at 0, 5, 605, 1505 and 1510 s. Beside
# each of the two gaps is the other one, and only the shorter interval shows that 5 s is usual.
GAPS = View(
    "gaps",
    "When were no samples recorded? One row per gap: two consecutive samples that are more than three times "
    "as far apart as those right before or right after them.",
    (
        *time_columns("first.timestamp", "of the first sample after the gap"),
        ViewColumn("began", "last.timestamp", "Unix seconds of the last sample before the gap"),
        ViewColumn(
            "began_local_time", local_time("last.timestamp"), "the same, in the time zone of the reader"
        ),
        ViewColumn("seconds", "first.timestamp - last.timestamp", "length of the gap"),
        ViewColumn(
            "missing_samples",
            f"(first.timestamp - last.timestamp) / {_USUAL_SECONDS} - 1",
            "how many samples the gap would have had at the usual interval",
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
