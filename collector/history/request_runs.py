"""The runs of requests: which process answered, known once the sampling has seen the process."""

from typing import Any

from collector.database import Database

BATCH_ROWS = 500
"""Rows in one transaction."""

PATIENCE_SECONDS = 600
"""A request whose run is not known so long after its end stays without one."""

_START_TOLERANCE_SECONDS = 5.0
"""How much later than its first request the start of a process may be computed: both times are estimates."""

_LATEST_RUN = """
    SELECT id, server, model, model_id, address FROM server_runs
    WHERE coalesce(started_at, first_seen_at) <= ?1 + ?2 AND (ended_at IS NULL OR ended_at >= ?1)
    ORDER BY coalesce(started_at, first_seen_at) DESC"""


class RequestRuns:
    """Assigns the rows of `requests` to those of `server_runs`.

    A log says on which port a router's child listens, and nothing about a single server. So a request of a
    child belongs to the process that had its port at that time, and any other to the only single server of
    that time; if there were several, it is not known.

    Args:
        database: the database.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._checked_id = 0

    def run(self, now: float) -> int:
        """Assign the rows that have no run yet, at most `BATCH_ROWS`; return how many were assigned.

        Args:
            now: Unix seconds.

        Raises:
            DatabaseBusy: another program holds a lock.
            DatabaseError: it cannot be read or written.
        """
        rows = self._database.query(
            "SELECT id, timestamp, time_source, model, origin, port, started_at, ended_at FROM requests "
            "WHERE run_id IS NULL AND id > ? ORDER BY id LIMIT ?",
            (self._checked_id, BATCH_ROWS),
        )
        found = [(row["id"], run) for row in rows if (run := self._run_of(row))]
        if found:
            with self._database.transaction() as connection:
                connection.executemany(
                    "UPDATE requests SET run_id = ?, server = ?, model = ?, model_id = ? WHERE id = ?",
                    [
                        (run["id"], run["server"], run["model"], run["model_id"], row_id)
                        for row_id, run in found
                    ],
                )
        old = [row["id"] for row in rows if row["timestamp"] < now - PATIENCE_SECONDS]
        self._checked_id = max([self._checked_id, *old])
        return len(found)

    def _run_of(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Return the run of a request; None if it is not known."""
        if request["time_source"] == "unknown":
            return None
        moment = request["started_at"] or request["ended_at"] or request["timestamp"]
        runs = self._database.query(_LATEST_RUN, (moment, _START_TOLERANCE_SECONDS))
        if request["port"]:
            return next((run for run in runs if str(run["address"]).endswith(f":{request['port']}")), None)
        if request["origin"] == "logs" and request["model"]:  # its port is not known; perhaps its model is
            of_model = {run["id"]: run for run in runs if run["model"] == request["model"]}
            if of_model:
                return next(iter(of_model.values())) if len(of_model) == 1 else None
        single = {run["server"]: run for run in reversed(runs) if run["address"] in (None, run["server"])}
        return next(iter(single.values())) if len(single) == 1 else None
