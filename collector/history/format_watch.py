"""Notice that llama-server answers requests of which its log, as it is understood, tells nothing."""

import structlog

from collector.database import Database

RISES = 3
"""In so many samples the tokens must have grown since the newest row of `requests`."""

_DELAY_SECONDS = 30
"""A request must be in the log, and its row committed, so long after the sample that counted it."""

_WINDOW_SECONDS = 3600


class FormatWatch:
    """Compares the counters of llama-server with the rows of `requests`.

    llama-server counts the tokens of a request when it ends, and prints that it ended. Counters that grow
    without rows mean that a new build prints something else, that it prints too little (`-lv 2`), or that
    another log is read. That is logged once, until there are rows again.

    Args:
        database: the database.
        since: Unix seconds from which on the log is read.
    """

    def __init__(self, database: Database, since: float) -> None:
        self._database = database
        self._since = since
        self._told: int | None = -1  # time of the newest row when it was logged; -1 = it was not

    def run(self, now: float) -> None:
        """Compare what was counted until some seconds ago.

        Raises:
            DatabaseError: the database cannot be read.
        """
        (newest,) = self._database.query("SELECT max(timestamp) AS at FROM requests")
        begin = max(self._since, now - _WINDOW_SECONDS, newest["at"] or 0)
        rises = self._database.query(
            "SELECT timestamp, run_id FROM token_steps WHERE timestamp > ? AND timestamp < ? "
            "AND generated_tokens > 0 ORDER BY timestamp LIMIT ?",
            (int(begin), int(now - _DELAY_SECONDS), RISES),
        )
        if len(rises) == RISES and newest["at"] != self._told:
            self._told = newest["at"]
            build = self._build(rises[-1]["run_id"])
            structlog.get_logger().warning(
                f"requests: llama-server{build} has answered requests that are not "
                "in its log: its format is not understood, its verbosity is below 3, or another log is read"
            )

    def _build(self, run_id: int | None) -> str:
        rows = self._database.query("SELECT build FROM server_runs WHERE id = ?", (run_id,))
        return f" (build {rows[0]['build']})" if rows and rows[0]["build"] else ""
