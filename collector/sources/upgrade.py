"""The upgrade of rows that version 0.1.0 wrote: adds their runs, server and used energy, in small steps.

Version 0.1.0 recorded no runs. Its views inferred from uptimes and falling counters where a process was
restarted. This module infers the same once for every old row and stores the result, so that the views of this
version handle old and new rows alike.

1. `begin` is called before the first sample. It creates the run of the newest old row of each model. If the
   process of that row still serves the model, the first new row continues this run.
2. `run` upgrades all other old rows while sampling continues. Each step is one transaction, which also stores
   the progress, so that a kill at any point neither skips nor repeats a row.
"""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from collector.database.database import Database
from collector.database.repositories.base import Record
from collector.errors import Stopped
from collector.sources.gpu.source import energy_used
from collector.sources.llama.run_table import RESTART_COUNTERS, Run, is_restarted
from collector.sources.llama.runs import UNOBSERVED, ServerRuns

STATE_KEY = "upgradeFrom010"
"""Key of the progress in `metadata`, as JSON; it is deleted when the upgrade is complete.

first, last: by table, the ids between which the rows to upgrade are (after the first, up to the last)
models: by model, the oldest upgraded row of `llama_metrics` and its run (see `_upgrade_metrics`)
gpus: by uuid, time and energy of the newest upgraded row of `gpu_metrics`
next_run: id of the run that is created next; it descends
"""

STEP_ROWS = 1000
"""Rows per transaction, which takes 10 to 20 ms."""

_SHORTEST_PAUSE_SECONDS = 0.01

Update = tuple[Any, ...]

_METRICS_COLUMNS = f"timestamp, model, model_id, uptime_seconds, {', '.join(RESTART_COUNTERS)}"
_NEWEST_ROWS = (
    f"SELECT id, {_METRICS_COLUMNS} FROM llama_metrics "  # noqa: S608 - our own names
    "WHERE id IN (SELECT max(id) FROM llama_metrics WHERE id > ? GROUP BY model)"
)
_UPDATE_METRICS = "UPDATE llama_metrics SET server = ?, run_id = ?, counted_from_zero = ? WHERE id = ?"
_UPDATE_EVENTS = "UPDATE model_events SET server = ? WHERE id = ?"
_UPDATE_GPUS = "UPDATE gpu_metrics SET vendor = 'nvidia', energy_used_joules = ? WHERE id = ?"
_TABLES = {"llama_metrics": "server", "model_events": "server", "gpu_metrics": "vendor"}
"""The tables to upgrade, each with a column that is NULL in rows of version 0.1.0 only."""


class RowUpgrade:
    """The upgrade of the rows of version 0.1.0 in one database.

    Args:
        database: the database.
        runs: provides ids of runs, and the time of the first sample.
        server: name of the server of all old rows: version 0.1.0 sampled only one.
        stop: set to end the upgrade early; the next start continues it.
    """

    def __init__(self, database: Database, runs: ServerRuns, server: str, stop: threading.Event) -> None:
        self._database = database
        self._runs = runs
        self._server = server
        self._stop = stop
        self._stored = ""  # the progress in the database, to detect that it was overwritten

    def begin(self) -> None:
        """Store which rows must be upgraded, and upgrade the newest row of each model.

        Does nothing if there are no such rows, or if an upgrade has begun already.

        Raises:
            DatabaseBusy: another program holds a lock; nothing was stored.
        """
        if self._database.meta.get(STATE_KEY):
            return
        ranges = {table: self._old_range(table, column) for table, column in _TABLES.items()}
        if not any(first < last for first, last in ranges.values()):
            return
        # Runs are created newest first, but ids must ascend in the order in which runs were first sampled. So
        # they are assigned in descending order, beginning with the number of rows: there cannot be more runs.
        first_id, last_id = ranges["llama_metrics"]
        number = last_id - first_id
        newest: dict[str, Record] = {}
        state: Record = {
            "first": {table: first for table, (first, _) in ranges.items()},
            "last": {table: last for table, (_, last) in ranges.items()},
            "models": newest,
            "gpus": {},
            "next_run": self._runs.reserve_ids(number) + number - 1,
        }
        with self._database.transaction() as connection:
            for row in self._database.query(_NEWEST_ROWS, (first_id,)):
                run_id = self._save_run(state, row, outcome=None)
                newest[row["model"]] = {**row, "run_id": run_id}
                connection.execute(_UPDATE_METRICS, (self._server, run_id, 0, row["id"]))
            connection.execute(
                "UPDATE model_events SET server = ? WHERE server IS NULL "
                "AND id IN (SELECT max(id) FROM model_events GROUP BY model)",
                (self._server,),
            )
            self._database.meta.set(STATE_KEY, state)
        self._runs.forget()  # the first sample must find the runs that were just created

    def is_due(self) -> bool:
        """Return whether there are rows left to upgrade."""
        return self._database.meta.get(STATE_KEY) is not None

    def run(self) -> None:
        """Upgrade all rows that are left.

        Raises:
            DatabaseBusy: another program holds a lock; the steps before it are stored.
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
        """Assign a run to each row of `llama_metrics`.

        The rows are read newest first, so that the views of recent days are complete first. `later` is the
        next newer row of the same model; for the first row of a model it is this row itself.

        An example of one model, in the order in which its rows are read:

            id 9: 150 tokens, uptime 45 s    the newest row: `begin` gave it run 9
            id 8: 120 tokens, uptime 40 s    the same process as id 9: run 9
            id 7: 100 tokens, uptime 900 s   another process: the last row of run 8

        Only id 7 shows that id 8 is the first row of run 9. So id 8 is updated again: its 120 tokens
        count in full, as they were all generated since id 7.
        """
        later_rows: dict[str, Record] = state["models"]
        for rows in self._rows_before(state, "llama_metrics", _METRICS_COLUMNS):
            with self._database.transaction():
                updates: list[Update] = []
                for row in rows:
                    model = row["model"]
                    later = later_rows.get(model)
                    if later is None:
                        # `begin` stored a row of each model: another program has changed old rows since.
                        later = {**row, "run_id": self._save_run(state, row, UNOBSERVED)}
                    elif row["id"] != later["id"] and is_restarted(row, later):
                        updates.append((self._server, later["run_id"], 1, later["id"]))
                        later = {**row, "run_id": self._save_run(state, row, UNOBSERVED)}
                    updates.append((self._server, later["run_id"], 0, row["id"]))
                    # A row without this counter belongs to the run of the next newer row, but is not compared
                    # with older rows.
                    if row["tokens_predicted_total"] is not None or model not in later_rows:
                        later_rows[model] = {**row, "run_id": later["run_id"]}
                self._store(state, _UPDATE_METRICS, updates)
        self._complete_oldest_rows(state["first"]["llama_metrics"], later_rows)

    def _complete_oldest_rows(self, after: int, oldest: dict[str, Record]) -> None:
        """Let the oldest row of a model count in full if its process started after the first sample.

        No older row shows when the process started, but its uptime does. If version 0.1.0 was used again
        after this version, the process must have started after the last row of this version, which counted
        what an older process did.

        Args:
            after: id of the last row of `llama_metrics` before those to upgrade; 0 if there is none.
            oldest: by model, the oldest upgraded row.
        """
        first_sample = self._runs.history_start().timestamp
        query = "SELECT timestamp FROM llama_metrics WHERE id <= ? ORDER BY id DESC LIMIT 1"
        for row in self._database.query(query, (after,)):
            first_sample = row["timestamp"] + 1
        with self._database.transaction() as connection:
            for row in oldest.values():
                if first_sample is not None and row["uptime_seconds"] is not None:
                    from_zero = row["timestamp"] - row["uptime_seconds"] >= first_sample - 1
                    values = (self._server, row["run_id"], int(from_zero), row["id"])
                    connection.execute(_UPDATE_METRICS, values)

    def _upgrade_gpus(self, state: Record) -> None:
        """Compute the energy that each GPU used since its previous row, oldest row first."""
        before: dict[str, tuple[int, float] | None] = state["gpus"]
        query = (
            "SELECT id, timestamp, uuid, energy_joules FROM gpu_metrics "  # noqa: S608 - a constant
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
        """Yield the rows that are left of a table, newest first, in steps with a pause after each.

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
        """Execute updates and store the progress, in one transaction.

        Raises:
            Stopped: the file was overwritten with another database, which has other progress stored or none.
                The next flush detects it as well.
        """
        with self._database.transaction() as connection:
            if json.dumps(self._database.meta.get(STATE_KEY)) != self._stored:
                raise Stopped("the database was overwritten with another one")
            connection.executemany(statement, updates)
            self._database.meta.set(STATE_KEY, state)
        self._stored = json.dumps(state)

    def _old_range(self, table: str, column: str) -> tuple[int, int]:
        """Return the ids between which rows of version 0.1.0 are: after the first, up to the second.

        These rows are always the newest ones of the table, because this method is called before the first
        sample. They are all rows, or only those at the end: after a user of this version went back to version
        0.1.0 for a while.

        Args:
            table: name of the table.
            column: a column that is NULL in rows of version 0.1.0.
        """
        newest = self._database.query(f"SELECT id, {column} FROM {table} ORDER BY id DESC LIMIT 1")  # noqa: S608
        if not newest or newest[0][column] is not None:
            return 0, 0
        if not self._database.query("SELECT 1 FROM server_runs LIMIT 1"):
            return 0, newest[0]["id"]
        upgraded = f"SELECT coalesce(max(id), 0) AS id FROM {table} WHERE {column} IS NOT NULL"  # noqa: S608
        return self._database.query(upgraded)[0]["id"], newest[0]["id"]

    def _save_run(self, state: Record, row: Record, outcome: str | None) -> int:
        """Write a run for the process of a row of `llama_metrics`, and return its id."""
        uptime = row["uptime_seconds"]
        run = Run(
            state["next_run"],
            self._server,
            None,
            row["model"],
            row["model_id"],
            started_at=None if uptime is None else row["timestamp"] - uptime,
            first_seen_at=row["timestamp"],
            outcome=outcome,
        )
        state["next_run"] -= 1
        write = run.save()
        with self._database.transaction() as connection:
            connection.executemany(write.statement, write.rows)
        return run.id
