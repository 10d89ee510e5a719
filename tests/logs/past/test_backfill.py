"""Rows of `logs` of an older version become requests: once, in steps, whatever interrupts them."""

from pathlib import Path

import pytest

from collector.catalog import open_database
from collector.database import Database
from collector.logs.past import backfill
from collector.logs.past.backfill import STATE_KEY, RequestBackfill
from tests.support.log_reading import file_collector
from tests.support.paths import RECORDINGS

FOLDER = RECORDINGS / "requests"
FACTS = "slot, task, outcome, prompt_tokens, cached_tokens, generated_tokens, total_ms, model, error"
SERVERS = ("b10229", "b11434-default", "b11434-embeddings", "b11434-router", "b5036", "b7710", "b8672")


def with_logs_only(server: str, directory: Path) -> list[tuple[object, ...]]:
    """Read a log into `d.db` and delete its requests, as if an older version had read it; return these."""
    with file_collector(directory / "d.db", FOLDER / server / "server.log") as collector:
        collector.poll()
        facts = facts_of(collector.database)
        with collector.database.transaction() as connection:
            connection.execute("DROP TABLE requests")
    return facts


def facts_of(database: Database) -> list[tuple[object, ...]]:
    """Return what is known of each request; where a router's child is known by its model, its model."""
    rows = database.query(f"SELECT {FACTS} FROM requests")
    return sorted((tuple(row.values()) for row in rows), key=repr)


def run_all(database: Database) -> None:
    job = RequestBackfill(database)
    while job.is_due():
        job.run()


@pytest.mark.parametrize("server", SERVERS)
def test_the_rows_of_logs_become_the_requests_that_their_reader_would_have_found(
    server: str, tmp_path: Path
) -> None:
    read = with_logs_only(server, tmp_path)
    with open_database(tmp_path / "d.db") as database:
        run_all(database)
        assert facts_of(database) == read
        rows = database.query("SELECT origin, time_source, queue_ms, port FROM requests")
        assert {tuple(row.values()) for row in rows} == {("logs", "arrival", None, None)}


def test_it_goes_on_after_each_interruption_and_never_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill, "BATCH_ROWS", 7)
    read = with_logs_only("b11434-default", tmp_path)
    steps = 0
    while True:
        with open_database(tmp_path / "d.db") as database:
            job = RequestBackfill(database)
            if not job.is_due():
                break
            job.run()
            steps += 1
    assert steps > 10
    with open_database(tmp_path / "d.db") as database:
        assert facts_of(database) == read
        with database.transaction() as connection:
            connection.execute("DELETE FROM requests")
        run_all(database)
        assert not facts_of(database)


def test_a_new_database_has_nothing_to_do_also_after_logs_were_read(tmp_path: Path) -> None:
    with open_database(tmp_path / "d.db") as database:
        run_all(database)
        database.logs.add("info", "slot launch_slot_: id  0 | task 1 | processing task", "llama-server")
    with open_database(tmp_path / "d.db") as database:
        assert not RequestBackfill(database).is_due()


def test_requests_that_are_there_already_are_not_added_again(tmp_path: Path) -> None:
    with file_collector(tmp_path / "d.db", FOLDER / "b10229" / "server.log") as collector:
        collector.poll()
        read = facts_of(collector.database)
    with open_database(tmp_path / "d.db") as database:
        run_all(database)
        assert facts_of(database) == read


@pytest.mark.parametrize(
    "state",
    [
        "text",
        {"last_id": "x"},
        {"last_id": 10**9, "next_id": "0"},
        {"last_id": 10**9, "next_id": 0, "writers": "x"},
        {"last_id": 10**9, "next_id": 0, "writers": [None], "open": {"0": 5}},
    ],
)
def test_a_state_that_another_program_wrote_does_no_harm(state: object, tmp_path: Path) -> None:
    read = with_logs_only("b10229", tmp_path)
    with open_database(tmp_path / "d.db") as database:
        database.meta.set(STATE_KEY, state)
        run_all(database)
        assert facts_of(database) == read
