"""The upgrade of rows that version 0.1.0 wrote: their runs, servers and energy, in small steps.

Version 0.1.0 recorded no runs. Its views guessed from uptimes and falling counters where a process was
restarted. The same guess is made here once for every old row and stored, so that views treat old and new
rows alike.

`begin` is called before the first sample. It creates the run that each model's newest old row belongs to:
the process may still serve the model, and the first new row then continues that run. `run` goes through the
old rows beside the sampling. Each step is one transaction that also stores how far it came, so that a kill
at any point loses and repeats nothing.
"""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from collector.database.database import Database
from collector.errors import Stopped
from collector.sources.gpu.source import energy_used
from collector.sources.llama.run_table import RESTART_COUNTERS, Run, is_restarted
from collector.sources.llama.runs import UNOBSERVED, ServerRuns

STATE_KEY = "upgradeFrom010"
"""In `metadata` while the upgrade is not finished: how far it came."""

STEP_ROWS = 1000
"""Rows of one transaction: 10 to 20 ms."""

_SHORTEST_PAUSE_SECONDS = 0.01

Record = dict[str, Any]
Update = tuple[Any, ...]

_METRICS_COLUMNS = f"timestamp, model, model_id, uptime_seconds, {', '.join(RESTART_COUNTERS)}"
_UPDATE_METRICS = "UPDATE llama_metrics SET server = ?, run_id = ?, counted_from_zero = ? WHERE id = ?"
_UPDATE_EVENTS = "UPDATE model_events SET server = ? WHERE id = ?"
_UPDATE_GPUS = "UPDATE gpu_metrics SET vendor = 'nvidia', energy_used_joules = ? WHERE id = ?"
_TABLES = {"llama_metrics": "server", "model_events": "server", "gpu_metrics": "vendor"}
"""The tables that are upgraded, and a column that version 0.1.0 left out of its rows."""


class RowUpgrade:
    """Upgrades the rows of version 0.1.0 in one database.

    Args:
        database: the database.
        runs: gives ids to runs, and knows since when there are samples.
        server: name of the server that version 0.1.0 watched: it watched only one.
        stop: ends the upgrade early; the next start continues it.
    """

    def __init__(self, database: Database, runs: ServerRuns, server: str, stop: threading.Event) -> None:
        self._database = database
        self._runs = runs
        self._server = server
        self._stop = stop
        self._stored = ""  # the state that the database has, to detect another database

    def begin(self) -> None:
        """Record what is to be upgraded, unless that was done already or there is nothing.

        Raises:
            DatabaseBusy: another program holds a lock; nothing was recorded.
        """
        if self._database.meta.get(STATE_KEY):
            return
        ranges = {table: self._old_range(table, column) for table, column in _TABLES.items()}
        if not any(first < last for first, last in ranges.values()):
            return
        # The upgrade creates the newest run first. So that ids ascend in the order in which runs were first
        # seen all the same, it assigns them in descending order, from as many as there can be runs.
        first_id, last_id = ranges["llama_metrics"]
        next_run = self._runs.reserve_ids(last_id - first_id) + last_id - first_id - 1
        with self._database.transaction() as connection:
            newest: dict[str, Record] = {}
            for row in self._newest_rows(first_id):
                run = self._run_of(next_run, row, outcome=None)
                next_run -= 1
                newest[row["model"]] = {**row, "run_id": run.id}
                connection.executemany(run.save().statement, run.save().rows)
                connection.execute(_UPDATE_METRICS, (self._server, run.id, 0, row["id"]))
            connection.execute(
                "UPDATE model_events SET server = ? WHERE server IS NULL "
                "AND id IN (SELECT max(id) FROM model_events GROUP BY model)",
                (self._server,),
            )
            first = {table: first for table, (first, _) in ranges.items()}
            last = {table: last for table, (_, last) in ranges.items()}
            state = {"first": first, "last": last, "models": newest, "gpus": {}, "next_run": next_run}
            self._database.meta.set(STATE_KEY, state)
        self._runs.forget()  # the first sample must find the runs that were just created

    def is_due(self) -> bool:
        """Return whether there are rows left to upgrade."""
        return self._database.meta.get(STATE_KEY) is not None

    def run(self) -> None:
        """Upgrade what is left.

        Raises:
            DatabaseBusy: another program holds a lock; what was done stays done.
            DatabaseError: disk full, read-only, damaged.
        """
        state: Record | None = self._database.meta.get(STATE_KEY)
        if state is None:
            return
        self._stored = json.dumps(state)
        try:
            self._upgrade_events(state)
            self._upgrade_metrics(state)
            self._upgrade_gpus(state)
        except Stopped:
            return
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM metadata WHERE key = ?", (STATE_KEY,))

    def _upgrade_events(self, state: Record) -> None:
        for rows in self._rows_before(state, "model_events", "model"):
            self._store(state, _UPDATE_EVENTS, [(self._server, row["id"]) for row in rows])

    def _upgrade_metrics(self, state: Record) -> None:
        """Assign a run to each row, newest first, so that recent times are complete soon.

        `state["models"]` has the row after, of each model, with its run. Where that one belongs to another
        process, it is the first row of its run: its counters count in full. An example, newest first: 50
        tokens after 40 s, 150 tokens after 900 s. The process of 50 tokens is younger than the time between
        the two rows, so a new run begins with it, and the row of 150 tokens ends the run before.
        """
        following: dict[str, Record] = state["models"]
        for rows in self._rows_before(state, "llama_metrics", _METRICS_COLUMNS):
            with self._database.transaction():
                updates: list[Update] = []
                for row in rows:
                    later = following.get(row["model"])
                    if (
                        later is None
                    ):  # every row of the newest ones' models has one, but for ids out of order
                        later = {**row, "run_id": self._save_run(state, row)}
                    elif row["id"] != later["id"] and is_restarted(row, later):
                        updates.append((self._server, later["run_id"], 1, later["id"]))
                        later = {**row, "run_id": self._save_run(state, row)}
                    updates.append((self._server, later["run_id"], 0, row["id"]))
                    if row["tokens_predicted_total"] is not None or row["model"] not in following:
                        following[row["model"]] = {**row, "run_id": later["run_id"]}
                self._store(state, _UPDATE_METRICS, updates)
        self._finish_oldest_runs(state["first"]["llama_metrics"], following)

    def _finish_oldest_runs(self, after: int, oldest: dict[str, Record]) -> None:
        """Count the oldest row of a model in full where its process started after the first sample.

        Where version 0.1.0 was used again after this one, it must have started after the last row of this
        one, which has counted what an older process did.
        """
        began = self._runs.history_start().timestamp
        before = "SELECT timestamp FROM llama_metrics WHERE id <= ? ORDER BY id DESC LIMIT 1"
        for row in self._database.query(before, (after,)):
            began = row["timestamp"] + 1
        with self._database.transaction() as connection:
            for row in oldest.values():
                if began is not None and row["uptime_seconds"] is not None:
                    from_zero = row["timestamp"] - row["uptime_seconds"] >= began - 1
                    values = (self._server, row["run_id"], int(from_zero), row["id"])
                    connection.execute(_UPDATE_METRICS, values)

    def _upgrade_gpus(self, state: Record) -> None:
        """Compute the energy that was used since the row before of each GPU, oldest first."""
        before: dict[str, tuple[int, float] | None] = state["gpus"]
        query = (
            "SELECT id, timestamp, uuid, energy_joules FROM gpu_metrics "  # noqa: S608 - our own number
            f"WHERE id > ? AND id <= ? ORDER BY id LIMIT {STEP_ROWS}"
        )
        first, last = state["first"], state["last"]["gpu_metrics"]
        while rows := self._database.query(query, (first["gpu_metrics"], last)):
            updates: list[Update] = []
            for row in rows:
                now = None if row["energy_joules"] is None else (row["timestamp"], row["energy_joules"])
                used = None if now is None else energy_used(before.get(str(row["uuid"])), now)
                before[str(row["uuid"])] = now
                updates.append((used, row["id"]))
            first["gpu_metrics"] = rows[-1]["id"]
            self._store(state, _UPDATE_GPUS, updates)
            self._pause(0)

    def _rows_before(self, state: Record, table: str, columns: str) -> Iterator[list[Record]]:
        """Yield the rows of a table that are left, newest first, in steps with a pause after each.

        Raises:
            Stopped: the collector is stopping.
        """
        query = (
            f"SELECT id, {columns} FROM {table} "  # noqa: S608
            f"WHERE id > ? AND id <= ? ORDER BY id DESC LIMIT {STEP_ROWS}"
        )
        while rows := self._database.query(query, (state["first"][table], state["last"][table])):
            started = time.monotonic()
            state["last"][table] = rows[-1]["id"] - 1
            yield rows
            self._pause(time.monotonic() - started)

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(max(_SHORTEST_PAUSE_SECONDS, seconds)):
            raise Stopped("the collector is stopping")

    def _store(self, state: Record, statement: str, updates: Sequence[Update]) -> None:
        """Write some rows, and how far the upgrade came, in one transaction.

        Raises:
            Stopped: the file was overwritten with another database, which has a state of its own or none. The
                next flush detects it as well.
        """
        with self._database.transaction() as connection:
            if json.dumps(self._database.meta.get(STATE_KEY)) != self._stored:
                raise Stopped("the database was overwritten with another one")
            connection.executemany(statement, updates)
            self._database.meta.set(STATE_KEY, state)
        self._stored = json.dumps(state)

    def _old_range(self, table: str, column: str) -> tuple[int, int]:
        """Return the ids between which the rows of version 0.1.0 are: after the first, up to the second.

        They are the newest ones: also where version 0.1.0 was used again after this one for a while.
        """
        newest = self._database.query(f"SELECT id, {column} FROM {table} ORDER BY id DESC LIMIT 1")  # noqa: S608
        if not newest or newest[0][column] is not None:
            return 0, 0
        if not self._database.query("SELECT 1 FROM server_runs LIMIT 1"):
            return 0, newest[0]["id"]
        upgraded = f"SELECT coalesce(max(id), 0) AS id FROM {table} WHERE {column} IS NOT NULL"  # noqa: S608
        return self._database.query(upgraded)[0]["id"], newest[0]["id"]

    def _newest_rows(self, after: int) -> list[Record]:
        """Return the newest row of each model in `llama_metrics`, of those after an id."""
        newest = "SELECT max(id) FROM llama_metrics WHERE id > ? GROUP BY model"
        query = f"SELECT id, {_METRICS_COLUMNS} FROM llama_metrics WHERE id IN ({newest})"  # noqa: S608
        return self._database.query(query, (after,))

    def _save_run(self, state: Record, row: Record) -> int:
        run = self._run_of(state["next_run"], row, UNOBSERVED)
        state["next_run"] -= 1
        with self._database.transaction() as connection:
            connection.executemany(run.save().statement, run.save().rows)
        return run.id

    def _run_of(self, run_id: int, row: Record, outcome: str | None) -> Run:
        uptime = row["uptime_seconds"]
        return Run(
            run_id,
            self._server,
            None,
            row["model"],
            row["model_id"],
            started_at=None if uptime is None else row["timestamp"] - uptime,
            first_seen_at=row["timestamp"],
            outcome=outcome,
        )
