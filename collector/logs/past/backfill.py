"""Requests out of the rows of `logs` that were stored before the table `requests` existed."""

import time
from typing import Any

from collector.database import Database
from collector.logs.past.merging import ProcessTimes, RequestMerge
from collector.logs.reader import LLAMA_SERVER
from collector.parsers.log.record import Kind, Record
from collector.parsers.requests.request import Request
from collector.parsers.requests.tracker import RequestTracker

STATE_KEY = "requestsOfOldLogs"
"""Key in `metadata`: the state of the work, see `RequestBackfill`."""

ORIGIN = "logs"

BATCH_ROWS = 1000
"""Rows read in one step: some 20 ms."""

_FIRST_PORT = 2**16
"""Stands for a child of a router, whose port the rows do not have: greater than any real port."""

_MAX_WRITERS = 64
"""Names of children that are told apart. The rows of any others are left out."""

_ROWS = "SELECT id, message, source, timestamp FROM logs WHERE id > ? AND id <= ? ORDER BY id LIMIT ?"


class RequestBackfill:
    """Reads the rows of `logs` once, in small steps.

    The state in `metadata` is committed with the rows of each step: `next_id` and `last_id` of the rows that
    are left, the tasks that are `open` (`RequestTracker`), and the `writers` (names of children, in the order
    in which they were seen). After the end it is only `last_id`.

    Args:
        database: contains both tables.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._state = self._stored_state() or self._first_state()

    def is_due(self) -> bool:
        """Return whether rows are left, or it is not recorded that there are none."""
        return "next_id" in self._state or self._stored_state() is None

    def run(self) -> None:
        """Read the next rows.

        Raises:
            DatabaseBusy: another program holds a lock.
            DatabaseError: the database cannot be read or written.
        """
        state = self._state
        if "next_id" not in state:
            if self._stored_state() is None:
                self._database.meta.set(STATE_KEY, state)
            return
        rows = self._database.query(_ROWS, (state["next_id"], state["last_id"], BATCH_ROWS))
        writers = [str(name) for name in state["writers"]]
        records: list[Record] = []
        times: list[float] = []
        for row in rows:
            source = str(row["source"])
            if source != LLAMA_SERVER and source not in writers and len(writers) < _MAX_WRITERS:
                writers.append(source)
            if source == LLAMA_SERVER or source in writers:
                port = 0 if source == LLAMA_SERVER else _FIRST_PORT + writers.index(source)
                records.append(Record(None, str(row["message"]), None, port, Kind.OPEN))
                times.append(float(row["timestamp"]))
        tracker = RequestTracker(state.get("open"))
        ended = tracker.add(records, times)
        state = {"last_id": state["last_id"]}
        if len(rows) == BATCH_ROWS:
            state |= {"next_id": rows[-1]["id"], "writers": writers, "open": tracker.to_store()}
        else:
            ended += tracker.end()
        with self._database.transaction():
            self._merge(ended, writers)
            self._database.meta.set(STATE_KEY, state)
        self._state = state

    def _merge(self, requests: list[Request], writers: list[str]) -> None:
        """Add requests; the names of children become models."""
        for request in requests:
            request.queue_ms = None  # of times in whole seconds
            if request.port:
                request.model, request.port = writers[request.port - _FIRST_PORT], 0
        merge = RequestMerge(self._database, ORIGIN, 0)
        merge.add(requests, {}, ProcessTimes(0.0, "arrival", is_final=True), time.time())

    def _stored_state(self) -> dict[str, Any] | None:
        """Return the state in the database; None if there is none, or another program wrote it."""
        state = self._database.meta.get(STATE_KEY)
        if not isinstance(state, dict) or not isinstance(state.get("last_id"), int):
            return None
        is_whole = isinstance(state.get("next_id"), int) and isinstance(state.get("writers"), list)
        return state if is_whole or "next_id" not in state else None

    def _first_state(self) -> dict[str, Any]:
        """Return the state before the first step: all rows are left."""
        last_id = self._database.query("SELECT max(id) AS id FROM logs")[0]["id"]
        if not last_id:
            return {"last_id": 0}
        return {"last_id": last_id, "next_id": 0, "writers": [], "open": {}}
