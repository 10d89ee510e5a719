from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.catalog import OWN_TABLES
from collector.database import Database
from collector.history.request_runs import PATIENCE_SECONDS, RequestRuns
from collector.logs.rows.requests import REQUESTS

NOW = 1_790_000_000


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(tmp_path / "d.db", OWN_TABLES) as opened:
        yield opened


def add_run(
    database: Database, address: str, server: str, model: str, started: float, ended: int | None = None
) -> None:
    with database.transaction() as connection:
        connection.execute(
            "INSERT INTO server_runs (address, server, model, model_id, started_at, first_seen_at, ended_at, "
            "counters_from_zero) VALUES (?, ?, ?, ?, ?, ?, ?, 1)",
            (address, server, model, f"id-{model}", started, int(started) + 3, ended),
        )


def add_request(database: Database, started: float, port: int | None = None) -> None:
    row = REQUESTS.row(
        {"timestamp": int(started), "started_at": started, "ended_at": started + 1, "task": 1, "port": port,
         "time_source": "stamp", "outcome": "finished"}
    )  # fmt: skip
    with database.transaction() as connection:
        connection.execute(REQUESTS.insert_statement, row)


def models(database: Database) -> list[str | None]:
    return [row["model"] for row in database.query("SELECT model FROM requests ORDER BY id")]


def test_a_request_of_a_child_belongs_to_the_process_that_had_its_port_then(database: Database) -> None:
    router = "127.0.0.1:9931"
    add_run(database, "127.0.0.1:4001", router, "a", NOW, NOW + 100)
    add_run(database, "127.0.0.1:4002", router, "b", NOW)
    add_run(database, "127.0.0.1:4001", router, "c", NOW + 150)
    for started, port in ((NOW + 50, 4001), (NOW + 50, 4002), (NOW + 200, 4001), (NOW + 120, 4001)):
        add_request(database, started, port)
    assert RequestRuns(database).run(NOW + 210) == 3
    assert models(database) == ["a", "b", "c", None]
    (row,) = database.query("SELECT run_id, server, model_id FROM requests WHERE id = 1")
    assert tuple(row.values()) == (1, router, "id-a")


def test_a_request_without_a_port_belongs_to_the_only_single_server(database: Database) -> None:
    add_run(database, "127.0.0.1:8080", "127.0.0.1:8080", "a", NOW, NOW + 100)
    add_run(database, "127.0.0.1:8080", "127.0.0.1:8080", "b", NOW + 110)
    add_request(database, NOW + 50)
    add_request(database, NOW + 120)
    assert RequestRuns(database).run(NOW + 130) == 2
    assert models(database) == ["a", "b"]


def test_of_several_single_servers_none_is_guessed(database: Database) -> None:
    add_run(database, "127.0.0.1:8080", "127.0.0.1:8080", "a", NOW)
    add_run(database, "127.0.0.1:8081", "127.0.0.1:8081", "b", NOW)
    add_request(database, NOW + 50)
    assert RequestRuns(database).run(NOW + 60) == 0
    assert models(database) == [None]


def test_a_run_that_is_sampled_after_its_first_request_is_found_later(database: Database) -> None:
    runs = RequestRuns(database)
    add_request(database, NOW + 1, 4001)
    assert runs.run(NOW + 2) == 0
    add_run(database, "127.0.0.1:4001", "127.0.0.1:9931", "a", NOW)
    assert runs.run(NOW + 12) == 1
    add_request(database, NOW + 20, 4009)
    assert runs.run(NOW + 21 + PATIENCE_SECONDS) == 0
    add_run(database, "127.0.0.1:4009", "127.0.0.1:9931", "late", NOW)
    assert runs.run(NOW + 22 + PATIENCE_SECONDS) == 0, "it is not searched for ever"
