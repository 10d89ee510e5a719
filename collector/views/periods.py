"""Hours and days, found so that a range of them reads only the rows in it."""

from collector.table import ViewColumn


def local_time(timestamp: str) -> str:
    """SQL of Unix seconds as a person reads them."""
    return f"datetime({timestamp}, 'unixepoch', 'localtime')"


def time_columns(timestamp: str, what: str) -> tuple[ViewColumn, ViewColumn]:
    """`timestamp` and `local_time`, first in every view over time."""
    return (
        ViewColumn("timestamp", timestamp, f"Unix seconds {what}"),
        ViewColumn("local_time", local_time(timestamp), "the same, in the time zone of whoever reads"),
    )


def hours_of(table: str) -> str:
    """WITH clause: `period(began, ended)`, every hour in which a table has rows.

    Each hour is found through the index of `timestamp`, and joined to the rows between its bounds: so a
    condition on `began` keeps all other rows unread, which a GROUP BY over the table itself would not.
    """
    return _periods(table, "{0} / 3600 * 3600", "{0} + 3600")


def days_of(table: str) -> str:
    """The same for days, from midnight to midnight in the time zone of whoever reads."""
    midnight = "CAST(strftime('%s', {0}, 'unixepoch', 'localtime', 'start of day', 'utc') AS INTEGER)"
    # A day may last 23 or 25 hours.
    return _periods(table, midnight, midnight.replace("'localtime', 'start of day'", _NEXT_DAY))


_NEXT_DAY = "'localtime', 'start of day', '+1 day'"


def _periods(table: str, begin: str, end: str) -> str:
    began = begin.format("min(timestamp)")
    return f"""
        WITH RECURSIVE beginning(began) AS (
          SELECT {began} FROM {table}
          UNION ALL
          SELECT (SELECT {began} FROM {table} WHERE timestamp >= {end.format("began")})
          FROM beginning WHERE began IS NOT NULL
        ), period(began, ended) AS (
          SELECT began, {end.format("began")} FROM beginning WHERE began IS NOT NULL
        )"""
