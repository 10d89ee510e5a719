from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from collector.catalog import open_database
from collector.database import Database
from collector.history.format_watch import FormatWatch
from collector.logs.rows.requests import REQUESTS
from collector.sources.llama.metrics import LLAMA_METRICS

NOW = 1_790_000_000


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with open_database(tmp_path / "d.db") as opened:
        yield opened


def add_samples(database: Database, *tokens: int) -> None:
    """Insert a sample every five seconds, the first one at `NOW`."""
    with database.transaction() as connection:
        connection.execute(
            "INSERT OR IGNORE INTO server_runs (id, server, model, first_seen_at, counters_from_zero, build) "
            "VALUES (1, 's', 'm', 1, 1, 12000)"
        )
        for number, total in enumerate(tokens):
            row: dict[str, Any] = {
                "timestamp": NOW + 5 * number,
                "model": "m",
                "run_id": 1,
                "tokens_predicted_total": float(total),
            }
            connection.execute(LLAMA_METRICS.insert_statement, LLAMA_METRICS.row(row))


def add_request(database: Database, timestamp: int) -> None:
    row: dict[str, Any] = {
        "timestamp": timestamp,
        "model": "m",
        "task": 1,
        "time_source": "stamp",
        "outcome": "finished",
        "generated_tokens": 10,
    }
    with database.transaction() as connection:
        connection.execute(REQUESTS.insert_statement, REQUESTS.row(row))


def warnings(watch: FormatWatch, *moments: int) -> list[str]:
    with capture_logs() as events:
        for moment in moments:
            watch.run(moment)
    return [event["event"] for event in events]


def test_counters_that_grow_without_requests_are_told_once_with_the_build(database: Database) -> None:
    add_samples(database, 0, 10, 20, 30)
    watch = FormatWatch(database, NOW - 10)
    assert warnings(watch, NOW + 20) == [], "the last lines may not have been read yet"
    (told,) = warnings(watch, NOW + 60, NOW + 120)
    assert told.startswith(
        "requests: llama-server (build 12000) has answered requests that are not in its log"
    )


def test_requests_that_are_found_are_no_reason(database: Database) -> None:
    add_samples(database, 0, 10, 20, 30)
    add_request(database, NOW + 16)
    assert warnings(FormatWatch(database, NOW - 10), NOW + 60) == []


def test_an_idle_server_and_the_time_before_the_log_was_read_are_no_reason(database: Database) -> None:
    add_samples(database, 50, 50, 50, 50, 50)
    assert warnings(FormatWatch(database, NOW - 10), NOW + 60) == []
    assert warnings(FormatWatch(database, NOW + 50), NOW + 100) == []


def test_the_view_compares_requests_with_counters(database: Database) -> None:
    add_samples(database, 0, 10, 20)
    add_request(database, NOW + 5)
    (row,) = database.query("SELECT * FROM requests_and_counters")
    assert (row["generated_by_requests"], row["generated_by_counters"], row["difference"]) == (10, 20, 10)
    add_request(database, NOW + 10)
    (row,) = database.query("SELECT difference, explanation FROM requests_and_counters")
    assert tuple(row.values()) == (0, "they agree")
