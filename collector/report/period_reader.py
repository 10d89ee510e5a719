"""Queries whose results are the series and rows of one period."""

import sqlite3
from collections import defaultdict
from typing import Any

from collector.database.connection import fetch
from collector.report.period import Period
from collector.report.plots import Points


class PeriodReader:
    """A reader of the data of one period.

    Args:
        connection: an open database.
        period: the time that every query is limited to.
    """

    def __init__(self, connection: sqlite3.Connection, period: Period) -> None:
        self._connection = connection
        self.period = period

    def rows(self, query: str, *more: object) -> list[dict[str, Any]]:
        """Return the rows of a SELECT in which ?1 and ?2 are the period's begin and end."""
        return fetch(self._connection, query, (self.period.begin, self.period.end, *more))

    def means(self, source: str, name: str, value: str) -> dict[str, Points]:
        """Return one series for each name, with the mean value of each slice of the period that has any.

        Args:
            source: a table or view.
            name: an SQL expression that names the series of a row.
            value: an SQL expression; rows where it is NULL do not count.
        """
        series: dict[str, Points] = defaultdict(list)
        query = f"""
            SELECT {name} AS series, avg(timestamp) AS moment, avg({value}) AS mean FROM {source}
            WHERE timestamp > ?1 AND timestamp <= ?2 AND {value} IS NOT NULL
            GROUP BY series, (timestamp - ?1) / ?3 ORDER BY series, moment"""  # noqa: S608
        for row in self.rows(query, self.period.slice_seconds):
            series[row["series"]].append((row["moment"], row["mean"]))
        return series

    def bars(self, source: str, name: str, value: str) -> dict[str, dict[str, float]]:
        """Return one series for each name, with the sum of each bar of the period (arguments: `means`)."""
        series: dict[str, dict[str, float]] = defaultdict(dict)
        query = f"""
            SELECT {name} AS series, sum({value}) AS total,
              strftime(?3, timestamp, 'unixepoch', 'localtime') AS bar
            FROM {source} WHERE timestamp > ?1 AND timestamp <= ?2 GROUP BY series, bar HAVING total > 0"""  # noqa: S608
        for row in self.rows(query, self.period.bar_format):
            series[row["series"]][row["bar"]] = row["total"]
        return series
