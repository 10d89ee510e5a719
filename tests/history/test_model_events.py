"""Model events out of a router's log: exact, complete and once each, whatever the samples saw of them.

The recording is the log of a router whose states a client asked for ten times a second meanwhile.
"""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from collector.catalog import OWN_TABLES
from collector.database import Database
from collector.history.model_events import LoggedModelEvents
from collector.logs.rows.router_events import ROUTER_EVENTS
from collector.schema import SqlValue
from collector.sources.llama.events import MODEL_EVENTS
from tests.support.log_reading import file_collector
from tests.support.paths import RECORDINGS

ROUTER = RECORDINGS / "requests" / "b11434-router"
SERVER = "127.0.0.1:18430"
LAST_STAMP = 49.853
SETTLE = 30.0

TRUTH = {
    "gemma-270m": [
        "loading", "loaded", "sleeping", "woke", "evicted", "loading", "loaded", "crashed", "loading", "loaded",
        "unloaded",
    ],
    "tiny-a": ["loading", "loaded", "sleeping", "woke", "evicted", "loading", "loaded", "unloaded"],
    "tiny-b": ["loading", "loaded", "unloaded", "loading", "loaded", "unloaded"],
    "broken": ["loading", "failed"],
}  # fmt: skip
"""What happened, by hand out of the log."""


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(tmp_path / "d.db", OWN_TABLES) as opened:
        yield opened


def states() -> list[tuple[float, str, str]]:
    """Return each change of a state that the client saw: Unix seconds, model, state."""
    return [tuple(json.loads(line)) for line in (ROUTER / "states.jsonl").read_text().splitlines()]


START = 1795649641.881
"""Unix seconds of the start of the router, out of `events.jsonl`."""


def read_log(database: Path, log: Path, anchor: float) -> None:
    """Read the recording into a database, with its last line at a time."""
    log.write_bytes((ROUTER / "server.log").read_bytes())
    os.utime(log, (anchor, anchor))
    with file_collector(database, log) as collector:
        collector.poll()
        os.utime(log, (anchor, anchor))
        collector.poll()


def add_line(database: Database, moment: float, event: str, **values: SqlValue) -> None:
    row = ROUTER_EVENTS.row(
        {"log": "router.log", "model": "m", "event": event, "occurred_at": moment, **values}
    )
    with database.transaction() as connection:
        connection.execute(ROUTER_EVENTS.insert_statement, row)


def add_sample(database: Database, moment: float, event: str, model: str = "m", **values: SqlValue) -> None:
    """Store what a sample saw."""
    state = {"woke": "loaded", "evicted": "unloaded", "crashed": "failed"}.get(event, event)
    row = MODEL_EVENTS.row(
        {"timestamp": int(moment), "model": model, "event": event, "state": state, "server": SERVER,
         "evidence": "sampling", **values}
    )  # fmt: skip
    with database.transaction() as connection:
        connection.execute(MODEL_EVENTS.insert_statement, row)


def add_run(database: Database, model: str, port: int, started: float, outcome: str | None = None) -> int:
    with database.transaction() as connection:
        added = connection.execute(
            "INSERT INTO server_runs (address, server, model, started_at, first_seen_at, outcome, "
            "counters_from_zero) VALUES (?, ?, ?, ?, ?, ?, 1)",
            (f"127.0.0.1:{port}", SERVER, model, started, int(started), outcome),
        )
        return int(added.lastrowid or 0)


def sample(database: Database, interval: float, offset: float) -> None:
    """Store the events that samples at this interval see."""
    changes, before = states(), dict.fromkeys(TRUTH, "unloaded")
    moment = START + offset
    while moment < START + LAST_STAMP:
        now = dict(before)
        now.update({model: state for at, model, state in changes if at <= moment})
        for model, state in now.items():
            if state != before[model]:
                event = "woke" if (before[model], state) == ("sleeping", "loaded") else state
                if before[model] == "sleeping" and state == "loading":
                    now[model] = "sleeping"  # it wakes, which is no event
                    continue
                add_sample(database, moment, {"unloaded!": "failed"}.get(event, event), model)
        before, moment = now, moment + interval


def stored(database: Database) -> list[dict[str, Any]]:
    return database.query("SELECT * FROM model_events ORDER BY coalesce(occurred_at, timestamp), id")


def names(database: Database) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in stored(database):
        found.setdefault(row["model"], []).append(row["event"])
    return found


@pytest.mark.parametrize("interval", [0.2, 1, 5, 17, 1000])
def test_events_are_those_of_the_log_whatever_the_samples_saw(
    tmp_path: Path, database: Database, interval: float
) -> None:
    add_run(database, "gemma-270m", 38729, START + 2.1)
    database.close()
    read_log(tmp_path / "d.db", tmp_path / "router.log", START + LAST_STAMP)
    with Database(tmp_path / "d.db", OWN_TABLES) as opened:
        sample(opened, interval, random.Random(interval).uniform(0, min(interval, 5)))
        job = LoggedModelEvents(opened, SETTLE)
        for seconds in (40, 60, 75, 100):  # in several parts
            job.run(START + seconds)
        assert names(opened) == TRUTH
        assert {row["server"] for row in stored(opened)} == {SERVER}
        assert all(row["evidence"] != "sampling" for row in stored(opened))
        ended = {"unloaded", "evicted", "failed", "crashed"}
        rest = opened.query("SELECT model, event FROM router_events")
        assert not [row for row in rest if row["event"] in ended]
        assert len(rest) <= len(TRUTH)


def test_times_are_those_at_which_a_client_saw_the_states(tmp_path: Path, database: Database) -> None:
    add_run(database, "gemma-270m", 38729, START + 2.1)
    database.close()
    read_log(tmp_path / "d.db", tmp_path / "router.log", START + LAST_STAMP)
    with Database(tmp_path / "d.db", OWN_TABLES) as opened:
        LoggedModelEvents(opened, SETTLE).run(START + 100)
        loaded = [row["occurred_at"] for row in stored(opened) if row["event"] in ("loaded", "woke")]
        seconds = {
            row["model"]: row["seconds_since_last"] for row in stored(opened) if row["event"] == "loaded"
        }
    seen = [at for at, _, state in states() if state == "loaded"]
    for moment in loaded:
        # The client asked ten times a second, and waited for each answer.
        assert any(-0.02 < at - moment < 0.5 for at in seen)
    assert seconds["gemma-270m"] == pytest.approx(1.05, abs=0.05)
    assert seconds["tiny-a"] == pytest.approx(0.04, abs=0.05)


class TestEnd:
    """How a process ended is what the log says."""

    @pytest.mark.parametrize(
        ("lines", "exit_code", "event"),
        [
            (["loaded", "evicting", "stopping"], 0, "evicted"),
            (["loaded", "stopping"], 9, "unloaded"),
            (["loaded", "sleeping", "evicting"], 0, "evicted"),
            (["loaded"], 139, "crashed"),
            (["loaded"], 0, "unloaded"),
            ([], 1, "failed"),
        ],
    )
    def test_a_sample_that_assumed_another_end_is_corrected(
        self, database: Database, lines: list[str], exit_code: int, event: str
    ) -> None:
        run = add_run(database, "m", 4001, 1000, "evicted")
        add_line(database, 1000.5, "spawned", port=4001)
        for number, line in enumerate(lines):
            add_line(database, 1001.5 + number, line, port=4001)
        add_line(database, 1010.25, "exited", exit_code=exit_code)
        wrong = "crashed" if event == "evicted" else "evicted"
        add_sample(database, 1012, wrong, run_id=run, seconds_since_last=3.0)
        LoggedModelEvents(database, SETTLE).run(2000)
        last = stored(database)[-1]
        assert (last["event"], last["evidence"], last["run_id"]) == (event, "log and sampling", run)
        assert (last["occurred_at"], last["timestamp"]) == (1010.25, 1010)
        is_fault = event in ("failed", "crashed")
        assert last["exit_code"] == (exit_code if is_fault else None)
        assert last["state"] == ("failed" if is_fault else "unloaded")
        (ended,) = database.query("SELECT outcome, exit_code FROM server_runs")
        assert ended["outcome"] == event
        assert ended["exit_code"] == (exit_code if is_fault else None)
        assert database.query("SELECT * FROM router_events") == []

    def test_the_end_of_the_whole_server_stays_the_outcome_of_its_runs(self, database: Database) -> None:
        run = add_run(database, "m", 4001, 1000, "ended")
        add_line(database, 1001, "stopping")
        add_line(database, 1002, "exited", exit_code=0)
        add_sample(database, 1003, "unloaded", run_id=run)
        LoggedModelEvents(database, SETTLE).run(2000)
        assert database.query("SELECT outcome FROM server_runs") == [{"outcome": "ended"}]

    def test_an_end_of_which_nothing_is_known_changes_nothing(self, database: Database) -> None:
        add_line(database, 1002, "exited", exit_code=0)
        add_sample(database, 1003, "evicted")
        LoggedModelEvents(database, SETTLE).run(2000)
        (row,) = stored(database)
        assert (row["event"], row["evidence"], row["occurred_at"]) == ("evicted", "sampling", None)
        assert database.query("SELECT * FROM router_events") == []

    def test_a_router_that_starts_has_no_children_of_before(self, database: Database) -> None:
        add_line(database, 1000, "spawned", port=4001)
        add_line(database, 1001, "evicting")
        add_line(database, 1002, "started", model=None)
        add_line(database, 1003, "exited", exit_code=0)
        LoggedModelEvents(database, SETTLE).run(2000)
        assert [row["event"] for row in stored(database)] == ["loading"]


def test_a_sample_that_is_committed_late_is_no_second_event(database: Database) -> None:
    job = LoggedModelEvents(database, SETTLE)
    run = add_run(database, "m", 4001, 1000)
    add_line(database, 1000.5, "spawned", port=4001)
    add_line(database, 1001.5, "loaded", port=4001)
    job.run(1040)
    add_sample(database, 1003, "loaded", run_id=run, context_size=4096)  # a lock delayed it
    job.run(1050)
    assert [row["event"] for row in stored(database)] == ["loading", "loaded"]
    last = stored(database)[-1]
    assert (last["evidence"], last["run_id"], last["context_size"]) == ("log and sampling", run, 4096)
    assert last["occurred_at"] == 1001.5


def test_the_order_of_events_is_that_of_their_lines(database: Database) -> None:
    add_line(database, 1000.5, "spawned", port=4001)
    add_line(database, 1001.25, "loaded", port=4001)  # by the clock of the child
    add_line(database, 1001.0, "stopping")
    add_line(database, 1001.125, "exited", exit_code=0)
    LoggedModelEvents(database, SETTLE).run(2000)
    assert [(row["event"], row["occurred_at"]) for row in stored(database)] == [
        ("loading", 1000.5), ("loaded", 1001.25), ("unloaded", 1001.25),
    ]  # fmt: skip


def test_a_change_that_only_a_sample_saw_stays(database: Database) -> None:
    add_run(database, "m", 4001, 1000)
    add_line(database, 1000.5, "spawned", port=4001)
    add_line(database, 1001.5, "loaded", port=4001)
    add_sample(database, 1003, "loaded")
    add_sample(database, 1010, "unloaded")  # the machine lost its router, and the log its end
    add_sample(database, 1013, "loaded")
    job = LoggedModelEvents(database, SETTLE)
    job.run(2000)
    job.run(2010)
    assert [row["event"] for row in stored(database)] == ["loading", "loaded", "unloaded", "loaded"]


def test_lines_wait_until_the_samples_of_their_time_are_stored(database: Database) -> None:
    add_line(database, 1000.5, "spawned", port=4001)
    job = LoggedModelEvents(database, SETTLE)
    assert job.run(1000.4 + SETTLE) == 0
    assert job.run(1000.6 + SETTLE) == 1


def test_two_routers_with_the_same_model_are_told_apart_by_the_ports_of_their_children(
    database: Database,
) -> None:
    add_run(database, "m", 4001, 1000)
    with database.transaction() as connection:
        connection.execute(
            "INSERT INTO server_runs (address, server, model, started_at, first_seen_at, counters_from_zero) "
            "VALUES ('127.0.0.1:4002', '127.0.0.1:9999', 'm', 1000, 1000, 1)"
        )
    add_line(database, 1000.5, "spawned", port=4001)
    add_line(database, 1000.7, "spawned", port=4002, log="other.log")
    add_line(database, 1005, "exited", exit_code=1)
    add_line(database, 1006, "exited", exit_code=1, log="other.log")
    LoggedModelEvents(database, SETTLE).run(2000)
    assert [(row["server"], row["event"]) for row in stored(database)] == [
        (SERVER, "loading"), ("127.0.0.1:9999", "loading"), (SERVER, "failed"), ("127.0.0.1:9999", "failed"),
    ]  # fmt: skip
