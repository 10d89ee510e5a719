"""Model events out of routers' logs: exact times and reasons, and what happened between two samples.

A sample sees the state of a model once in a while. The log of its router says when its process began, was
ready, slept and ended, and why. This job gives each event of the log to the sampled row that saw it, and adds
a row where no sample did. It waits until the samples of that time are committed.
"""

import json
import sqlite3
from dataclasses import dataclass
from typing import Any

from collector.database import Database
from collector.database.connection import fetch

BATCH_ROWS = 1000
"""Lines of logs in one transaction."""

SAMPLE_SLACK_SECONDS = 5.0
"""How much earlier than its line a sample may be: a line without a stamp is read later, and a slow router
answers long after the time of the sample."""

_RUN_SLACK_SECONDS = 60.0
"""A process may be sampled first so long after its start; a port is not given twice so soon."""

_LATE_SECONDS = 900.0
"""Rows of samples that were committed so late, because of a lock, are still compared."""

_STATES = ("spawned", "loaded", "sleeping", "waking")
"""Lines after which a model has another state; the others say why it ends."""

_ENDS = ("unloaded", "evicted", "failed", "crashed")
_SAME = {
    "loading": ("loading",),
    "loaded": ("loaded", "woke"),
    "woke": ("loaded", "woke"),
    "sleeping": ("sleeping",),
    **dict.fromkeys(_ENDS, _ENDS),
}
"""By event: the events that a sample may have taken it for."""

_STATE_BEFORE = {"loaded": "loading", "woke": "sleeping", "failed": "loading"}
_CHANGES = (*_STATES, "exited")
_FOR_EVER = 2**53

_LINES = "SELECT * FROM router_events WHERE merged IS NULL AND occurred_at <= ? ORDER BY id LIMIT ?"
_LINES_BEFORE = (
    "SELECT * FROM router_events WHERE log = ? AND model = ? AND id < ? AND merged = 1 ORDER BY id"
)
_KEEP = "UPDATE router_events SET merged = 1, event = ?, occurred_at = ? WHERE id = ?"
_NEXT_STATE = """
    SELECT min(occurred_at) AS moment FROM router_events
    WHERE log = ? AND model = ? AND id > ? AND event IN (SELECT value FROM json_each(?))"""
_LATE_SAMPLES = """
    SELECT * FROM model_events AS late
    WHERE timestamp BETWEEN ?1 AND ?2 AND evidence = 'sampling' AND EXISTS (
      SELECT 1 FROM model_events AS logged
      WHERE logged.server IS late.server AND logged.model = late.model AND logged.evidence = 'log'
      AND logged.occurred_at BETWEEN late.timestamp - ?3 AND late.timestamp + 1)"""
_RUN_OF_PORT = """
    SELECT id AS run_id, server, model_id, build FROM server_runs
    WHERE model = ?1 AND address LIKE ?2 AND coalesce(started_at, first_seen_at) <= ?3 + ?4
    AND (ended_at IS NULL OR ended_at >= ?3 - ?4)
    ORDER BY id DESC LIMIT 1"""
_SERVERS_OF_MODEL = "SELECT DISTINCT server FROM server_runs WHERE model = ? LIMIT 2"
_ROUTERS = "SELECT DISTINCT server FROM server_runs WHERE address <> server LIMIT 2"
_SAMPLED = """
    SELECT id, run_id FROM model_events
    WHERE server IS ? AND model = ? AND event IN (SELECT value FROM json_each(?))
    AND coalesce(evidence, 'sampling') = 'sampling' AND timestamp BETWEEN ? AND ?
    ORDER BY timestamp, id LIMIT 1"""
_EVENT_BEFORE = """
    SELECT state, model_id, model_path, build FROM model_events
    WHERE server IS ? AND model = ? AND coalesce(occurred_at, timestamp) <= ? AND id IS NOT ?
    ORDER BY coalesce(occurred_at, timestamp) DESC, id DESC LIMIT 1"""
_NEWEST_LOGGED = """
    SELECT id, event, evidence FROM model_events
    WHERE server IS ? AND model = ? AND occurred_at BETWEEN ? AND ?
    ORDER BY occurred_at DESC, id DESC LIMIT 1"""
_CORRECT = """
    UPDATE model_events SET timestamp = :timestamp, occurred_at = :occurred_at, event = :event,
      state = :state, previous_state = :previous_state,
      seconds_since_last = coalesce(:seconds, seconds_since_last), exit_code = :exit_code,
      evidence = 'log and sampling'
    WHERE id = :id"""
_ADD = """
    INSERT INTO model_events (timestamp, model, model_id, event, state, previous_state, seconds_since_last,
      exit_code, model_path, build, server, run_id, occurred_at, evidence)
    VALUES (:timestamp, :model, :model_id, :event, :state, :previous_state, :seconds, :exit_code, :model_path,
      :build, :server, :run_id, :occurred_at, 'log')"""
_JOIN = """
    UPDATE model_events SET run_id = coalesce(run_id, :run_id), model_id = coalesce(model_id, :model_id),
      model_path = coalesce(model_path, :model_path), build = coalesce(build, :build),
      context_size = :context_size, evidence = 'log and sampling'
    WHERE id = :kept"""
_CORRECT_RUN = """
    UPDATE server_runs SET outcome = ?, exit_code = ?
    WHERE id = ? AND outcome IN (SELECT value FROM json_each(?))"""


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """An event of a model as the log has it.

    Args:
        event: as in `model_events`.
        state: the state of the model after it.
        seconds: how long the state before it lasted; None = not known.
        exit_code: of its process; None = it did not end, or as asked.
    """

    event: str
    state: str
    seconds: float | None
    exit_code: int | None = None


class LoggedModelEvents:
    """Moves what `router_events` contains into `model_events`.

    Args:
        database: the database.
        settle_seconds: after this time a sample that saw an event is committed, unless something delays it.
    """

    def __init__(self, database: Database, settle_seconds: float) -> None:
        self._database = database
        self._settle_seconds = settle_seconds

    def run(self, now: float) -> int:
        """Move the lines that are old enough, at most `BATCH_ROWS`; return how many.

        Args:
            now: Unix seconds.

        Raises:
            DatabaseBusy: another program holds a lock.
            DatabaseError: it cannot be read or written.
        """
        until = now - self._settle_seconds
        lines = self._database.query(_LINES, (until, BATCH_ROWS))
        late = self._database.query(_LATE_SAMPLES, (until - _LATE_SECONDS, until, self._settle_seconds))
        if lines or late:
            with self._database.transaction() as connection:
                for line in lines:
                    self._merge(connection, line)
                for sample in late:
                    _merge_late(connection, sample, self._settle_seconds)
        return len(lines)

    def _merge(self, connection: sqlite3.Connection, line: dict[str, Any]) -> None:
        """Move one line."""
        key = (line["log"], line["model"], line["id"])
        if line["event"] == "started":  # none of the router's children of before is left
            connection.execute("DELETE FROM router_events WHERE log = ? AND id <= ?", (key[0], key[2]))
            return
        earlier = fetch(connection, _LINES_BEFORE, key)
        if earlier:  # the lines are in their order, and the clocks of router and child differ a little
            line["occurred_at"] = max(line["occurred_at"], earlier[-1]["occurred_at"])
        logged = logged_event(line, earlier)
        if logged:
            port = line["port"] or next((one["port"] for one in reversed(earlier) if one["port"]), None)
            _write(connection, line, logged, _process(connection, line, port))
            connection.execute("DELETE FROM router_events WHERE log = ? AND model = ? AND id < ?", key)
        is_awake = line["event"] == "initialized" and logged is not None
        if line["event"] == "exited" or (line["event"] == "initialized" and not is_awake):
            connection.execute("DELETE FROM router_events WHERE id = ?", (line["id"],))
            return
        event = "loaded" if is_awake else line["event"]  # awake, it is as if it had just been loaded
        connection.execute(_KEEP, (event, line["occurred_at"], line["id"]))


def logged_event(line: dict[str, Any], earlier: list[dict[str, Any]]) -> LoggedEvent | None:
    """Return the event of a line; None where it is none, or where it is not known which.

    Args:
        line: a row of `router_events`.
        earlier: the rows of the same model since its state before, in their order.
    """
    last = next((one for one in reversed(earlier) if one["event"] in _STATES), None)
    before = last["event"] if last else None
    seconds = _seconds_between(last, line)
    match line["event"]:
        case "spawned":
            return LoggedEvent("loading", "loading", None)
        case "loaded":
            return LoggedEvent("loaded", "loaded", seconds if before == "spawned" else None)
        case "sleeping":
            return LoggedEvent("sleeping", "sleeping", seconds)
        case "initialized" if before == "waking":
            asleep = next((one for one in earlier if one["event"] == "sleeping"), None)
            return LoggedEvent("woke", "loaded", _seconds_between(asleep, line))
        case "exited":
            return _end(line, {one["event"] for one in earlier}, before, seconds)
    return None


def _seconds_between(earlier: dict[str, Any] | None, later: dict[str, Any]) -> float | None:
    """Return the seconds between two lines; None where the first one is not known."""
    return round(max(0.0, later["occurred_at"] - earlier["occurred_at"]), 3) if earlier else None


def _end(
    line: dict[str, Any], said: set[str], before: str | None, seconds: float | None
) -> LoggedEvent | None:
    """Return the event of the end of a process.

    Args:
        line: the one of the end.
        said: what the log said before it.
        before: the state of the model.
        seconds: how long it had it.
    """
    if "evicting" in said:
        return LoggedEvent("evicted", "unloaded", seconds)
    if "stopping" in said:
        return LoggedEvent("unloaded", "unloaded", seconds)
    if before is None:
        return None
    if before == "spawned":
        return LoggedEvent("failed", "failed", seconds, line["exit_code"])
    if line["exit_code"] == 0:
        return LoggedEvent("unloaded", "unloaded", seconds)
    return LoggedEvent("crashed", "failed", seconds, line["exit_code"])


def _process(connection: sqlite3.Connection, line: dict[str, Any], port: int | None) -> dict[str, Any]:
    """Return what is known of the process of a line: run_id, server, model_id, build.

    A process that no sample saw has no row in `server_runs`. Then its server is the only one that had this
    model, or the only router.
    """
    if port:
        runs = fetch(
            connection, _RUN_OF_PORT, (line["model"], f"%:{port}", line["occurred_at"], _RUN_SLACK_SECONDS)
        )
        if runs:
            return runs[0]
    servers = fetch(connection, _SERVERS_OF_MODEL, (line["model"],))
    servers = servers or fetch(connection, _ROUTERS, ())
    server = servers[0]["server"] if len(servers) == 1 else None
    return {"run_id": None, "model_id": None, "build": None, "server": server}


def _write(
    connection: sqlite3.Connection, line: dict[str, Any], logged: LoggedEvent, process: dict[str, Any]
) -> None:
    """Give an event to the row of the sample that saw it, or add one."""
    server, model, moment = process["server"], line["model"], line["occurred_at"]
    (following,) = fetch(connection, _NEXT_STATE, (line["log"], model, line["id"], json.dumps(_CHANGES)))
    until = _FOR_EVER if following["moment"] is None else following["moment"]
    names = json.dumps(_SAME[logged.event])
    sampled = fetch(connection, _SAMPLED, (server, model, names, int(moment - SAMPLE_SLACK_SECONDS), until))
    row = sampled[0] if sampled else None
    earlier = fetch(connection, _EVENT_BEFORE, (server, model, moment, row["id"] if row else None))
    before = earlier[0] if earlier else dict.fromkeys(("state", "model_id", "model_path", "build"))
    values = {
        "timestamp": int(moment),
        "occurred_at": moment,
        "event": logged.event,
        "state": logged.state,
        "previous_state": _STATE_BEFORE.get(logged.event, before["state"]),
        "seconds": logged.seconds,
        "exit_code": logged.exit_code,
    }
    if row:
        connection.execute(_CORRECT, {**values, "id": row["id"]})
    else:
        known = {
            "model": model,
            "server": server,
            "run_id": process["run_id"],
            "model_id": process["model_id"] or before["model_id"],
            "model_path": before["model_path"],
            "build": process["build"] or before["build"],
        }
        connection.execute(_ADD, {**values, **known})
    run_id = row["run_id"] if row else process["run_id"]
    if run_id is not None and logged.event in _ENDS:
        connection.execute(_CORRECT_RUN, (logged.event, logged.exit_code, run_id, json.dumps(_ENDS)))


def _merge_late(connection: sqlite3.Connection, late: dict[str, Any], settle_seconds: float) -> None:
    """Join a row of a sample that was committed late with the row that the log gave meanwhile."""
    since, until = late["timestamp"] - settle_seconds, late["timestamp"] + 1
    newest = fetch(connection, _NEWEST_LOGGED, (late["server"], late["model"], since, until))
    if not newest or newest[0]["evidence"] != "log" or late["event"] not in _SAME[newest[0]["event"]]:
        return
    connection.execute(_JOIN, {**late, "kept": newest[0]["id"]})
    connection.execute("DELETE FROM model_events WHERE id = ?", (late["id"],))
