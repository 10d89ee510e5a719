"""Hours and days that have rows, in SQL that reads only the rows of the range that is asked for."""

from collector.schema import ViewColumn


def local_time(timestamp: str) -> str:
    """Return SQL that shows Unix seconds to people."""
    return f"datetime({timestamp}, 'unixepoch', 'localtime')"


def time_columns(timestamp: str, what: str) -> tuple[ViewColumn, ViewColumn]:
    """Return the columns `timestamp` and `local_time`, the first ones of every view over time."""
    return (
        ViewColumn("timestamp", timestamp, f"Unix seconds {what}"),
        ViewColumn("local_time", local_time(timestamp), "the same, in the time zone of the reader"),
    )


_STRETCH = 10 * 86_400  # seconds


def hours_of(table: str) -> str:
    """Return the WITH clause of `period(began, ended)`: every hour in which a table has rows.

    Each hour is found by the index of `timestamp` and joined to the rows between its bounds. So a condition
    on `began` leaves all other rows unread, which a GROUP BY over the table itself would not. Hours are
    searched within stretches of ten days that have rows: a stretch that the condition excludes costs nothing,
    while stepping from hour to hour would cost more with every year of history.
    """
    stretches = _beginnings(table, f"{{0}} / {_STRETCH} * {_STRETCH}", f"{{0}} + {_STRETCH}")
    began = "beginning.began + hour.second"
    return f"""
        {stretches}, hour(second) AS (
          SELECT 0 UNION ALL SELECT second + 3600 FROM hour WHERE second < {_STRETCH - 3600}
        ), period(began, ended) AS (
          SELECT {began}, {began} + 3600 FROM beginning CROSS JOIN hour
          WHERE beginning.began IS NOT NULL AND EXISTS (
            SELECT 1 FROM {table} WHERE timestamp >= {began} AND timestamp < {began} + 3600)
        )"""


def days_of(table: str) -> str:
    """Return the same for days, from midnight to midnight in the time zone of the reader."""
    midnight = "CAST(strftime('%s', {0}, 'unixepoch', 'localtime', 'start of day', 'utc') AS INTEGER)"
    # A day may last 23 or 25 hours.
    next_midnight = midnight.replace("'localtime', 'start of day'", _NEXT_DAY)
    return f"""
        {_beginnings(table, midnight, next_midnight)}, period(began, ended) AS (
          SELECT began, {next_midnight.format("began")} FROM beginning WHERE began IS NOT NULL
        )"""


_NEXT_DAY = "'localtime', 'start of day', '+1 day'"


def _beginnings(table: str, begin: str, end: str) -> str:
    """Return the WITH clause of `beginning(began)`: where each period with rows begins, and a last NULL.

    Args:
        table: its name.
        begin: SQL of the begin of the period that contains a time, with a placeholder for that time.
        end: SQL of the end of a period, with a placeholder for its begin.
    """
    began = begin.format("min(timestamp)")
    return f"""
        WITH RECURSIVE beginning(began) AS (
          SELECT {began} FROM {table}
          UNION ALL
          SELECT (SELECT {began} FROM {table} WHERE timestamp >= {end.format("began")})
          FROM beginning WHERE began IS NOT NULL
        )""".strip()
