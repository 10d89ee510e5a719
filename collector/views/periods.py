"""Hours and days, found so that a range of them reads only the rows in it."""

from collector.schema import ViewColumn


def local_time(timestamp: str) -> str:
    """SQL of Unix seconds as a person reads them."""
    return f"datetime({timestamp}, 'unixepoch', 'localtime')"


def time_columns(timestamp: str, what: str) -> tuple[ViewColumn, ViewColumn]:
    """`timestamp` and `local_time`, first in every view over time."""
    return (
        ViewColumn("timestamp", timestamp, f"Unix seconds {what}"),
        ViewColumn("local_time", local_time(timestamp), "the same, in the time zone of whoever reads"),
    )


_STRETCH = 10 * 86_400  # seconds


def hours_of(table: str) -> str:
    """WITH clause: `period(began, ended)`, every hour in which a table has rows.

    Each hour is looked up in the index of `timestamp`, and joined to the rows between its bounds: so a
    condition on `began` keeps all other rows unread, which a GROUP BY over the table itself would not.
    Hours are looked for in stretches of ten days that have rows: those that a condition leaves out cost
    nothing, while going from one hour to the next would take as long as there are years.
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
    """The same for days, from midnight to midnight in the time zone of whoever reads."""
    midnight = "CAST(strftime('%s', {0}, 'unixepoch', 'localtime', 'start of day', 'utc') AS INTEGER)"
    # A day may last 23 or 25 hours.
    next_midnight = midnight.replace("'localtime', 'start of day'", _NEXT_DAY)
    return f"""
        {_beginnings(table, midnight, next_midnight)}, period(began, ended) AS (
          SELECT began, {next_midnight.format("began")} FROM beginning WHERE began IS NOT NULL
        )"""


_NEXT_DAY = "'localtime', 'start of day', '+1 day'"


def _beginnings(table: str, begin: str, end: str) -> str:
    """WITH clause: `beginning(began)`, where each period that has rows begins; and a last one that is NULL.

    Args:
        table: its name.
        begin: SQL of a period's begin, of a time in it.
        end: SQL of its end, of its begin.
    """
    began = begin.format("min(timestamp)")
    return f"""
        WITH RECURSIVE beginning(began) AS (
          SELECT {began} FROM {table}
          UNION ALL
          SELECT (SELECT {began} FROM {table} WHERE timestamp >= {end.format("began")})
          FROM beginning WHERE began IS NOT NULL
        )""".strip()
