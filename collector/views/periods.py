"""SQL that groups rows by hour or day, and reads only the rows of the hours or days that a query asks for.

A view with GROUP BY over a timestamp that it computes cannot use the index of `timestamp`: a query for one
day would read the whole table. So the views first find the hours that have rows (`hours_of`) or the days
(`days_of`), and join each to its rows by the index:

    WITH ... period(began, ended) AS (...)
    SELECT ... FROM period CROSS JOIN logs WHERE logs.timestamp >= began AND logs.timestamp < ended

SQLite applies a condition on `began` (the view's `timestamp`) to `period` before the join. CROSS JOIN keeps
that order.
"""

from collector.schema import ViewColumn


def local_time(timestamp: str) -> str:
    """Return the SQL expression of Unix seconds as text, in the local time of the reader."""
    return f"datetime({timestamp}, 'unixepoch', 'localtime')"


def time_columns(timestamp: str, what: str) -> tuple[ViewColumn, ViewColumn]:
    """Return the columns `timestamp` and `local_time`, the first columns of every view over time.

    Args:
        timestamp: SQL expression of the Unix seconds.
        what: continues the description "Unix seconds ...".
    """
    return (
        ViewColumn("timestamp", timestamp, f"Unix seconds {what}"),
        ViewColumn("local_time", local_time(timestamp), "the same, in the time zone of the reader"),
    )


_BLOCK_SECONDS = 10 * 86_400
"""Length of the blocks in which `hours_of` searches for hours with rows."""


def hours_of(table: str) -> str:
    """Return the WITH clause of `period(began, ended)`: every hour in which a table has rows.

    The hours are found in two steps:

    1. `block(began)`: all blocks of ten days that contain rows. A year has 37 of them.
    2. `period`: of the 240 hours of each block, those in which the index of `timestamp` finds a row.

    Example: of ten years of rows, a query asks for one day. Finding the blocks takes 365 searches in the
    index. All but one or two of them are outside the range and excluded before their hours are searched.
    Without blocks, every query would search for each of the 87,600 hours.
    """
    blocks = _period_starts(
        "block", table, f"{{0}} / {_BLOCK_SECONDS} * {_BLOCK_SECONDS}", f"{{0}} + {_BLOCK_SECONDS}"
    )
    began = "block.began + hour.second"
    return f"""
        {blocks}, hour(second) AS (
          SELECT 0 UNION ALL SELECT second + 3600 FROM hour WHERE second < {_BLOCK_SECONDS - 3600}
        ), period(began, ended) AS (
          SELECT {began}, {began} + 3600 FROM block CROSS JOIN hour
          WHERE block.began IS NOT NULL AND EXISTS (
            SELECT 1 FROM {table} WHERE timestamp >= {began} AND timestamp < {began} + 3600)
        )"""


def days_of(table: str) -> str:
    """Return the WITH clause of `period(began, ended)`: every day in which a table has rows.

    A day lasts from midnight to midnight in the time zone of the reader: 23 or 25 hours where the clocks
    change. So its end is computed as the midnight of the next calendar day, never by adding 86,400 seconds.
    """
    midnight, next_midnight = _midnight("date({0}, 'unixepoch', 'localtime')"), _midnight(_NEXT_DATE)
    return f"""
        {_period_starts("day", table, midnight, next_midnight)}, period(began, ended) AS (
          SELECT began, {next_midnight.format("began")} FROM day WHERE began IS NOT NULL
        )"""


_NEXT_DATE = "date({0}, 'unixepoch', 'localtime', '+1 day')"


def _midnight(date: str) -> str:
    """Return SQL of the first second of a local date.

    Where the clocks change at midnight, SQLite converts 00:00 of that date to an hour before or after the
    day's beginning. In Cairo 00:00 does not exist on the day on which summer time begins: SQLite returns
    23:00 of the day before. In Havana the hour from 00:00 to 01:00 comes twice when it ends: SQLite may
    return the second one. Both are told by the local dates of the result and of the hour before it.

    Args:
        date: SQL of the date; `{0}` in it is Unix seconds.
    """
    guess = f"CAST(strftime('%s', {date}, 'utc') AS INTEGER)"
    date_of_guess = f"date({guess}, 'unixepoch', 'localtime')"
    date_of_hour_before = f"date({guess} - 3600, 'unixepoch', 'localtime')"
    return f"({guess} + 3600 * ({date_of_guess} < {date}) - 3600 * ({date_of_hour_before} >= {date}))"


def _period_starts(name: str, table: str, start: str, end: str) -> str:
    """Return the WITH clause of `NAME(began)`: the start of each period in which a table has rows.

    The recursion goes from one period with rows to the next: it searches for the first row at or after the
    end of a period. After the last period there is none, and min() is NULL: that NULL is the last row of the
    result and ends the recursion.

    Args:
        name: name of the common table.
        table: name of the table with the rows.
        start: SQL of the start of the period that contains a time; `{0}` is that time.
        end: SQL of the end of a period; `{0}` is its start.
    """
    began = start.format("min(timestamp)")
    return f"""
        WITH RECURSIVE {name}(began) AS (
          SELECT {began} FROM {table}
          UNION ALL
          SELECT (SELECT {began} FROM {table} WHERE timestamp >= {end.format("began")})
          FROM {name} WHERE began IS NOT NULL
        )""".strip()
