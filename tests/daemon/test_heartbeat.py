import time
from pathlib import Path

import pytest

from collector.daemon import systemd
from collector.daemon.heartbeat import Heartbeat, status_line
from collector.health import OK, Health, State


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str | int]]:
    messages: list[dict[str, str | int]] = []
    monkeypatch.setattr(systemd, "notify", lambda **states: messages.append(states))
    return messages


def health_of(name: str, state: State = OK, seconds_ago: float = 0) -> Health:
    health = Health(name)
    health.record_run(state, 0)
    health.last_run = time.monotonic() - seconds_ago
    return health


def test_a_job_that_does_not_return_stops_the_watchdog_messages(sent: list[dict[str, str | int]]) -> None:
    Heartbeat(
        [(health_of("flush", seconds_ago=29), 5), (health_of("sample", seconds_ago=31), 5)], lambda: ""
    ).report()
    assert {"WATCHDOG": 1} not in sent


def test_a_job_that_fails_but_returns_does_not(sent: list[dict[str, str | int]]) -> None:
    waiting = State("waiting", "another program holds a lock", "warning", success=False)
    Heartbeat([(health_of("flush", waiting), 5)], lambda: "").report()
    assert {"WATCHDOG": 1} in sent


def test_a_long_interval_has_a_long_timeout(sent: list[dict[str, str | int]]) -> None:
    Heartbeat([(health_of("sample", seconds_ago=3 * 3600 - 10), 3600)], lambda: "").report()
    assert {"WATCHDOG": 1} in sent


def test_ready_is_reported_once_when_the_first_flush_has_succeeded(sent: list[dict[str, str | int]]) -> None:
    flush = health_of("flush", State("failed", "the disk is full", "error", success=False))
    heartbeat = Heartbeat([(health_of("sample"), 5), (flush, 5)], lambda: "")
    heartbeat.report()
    assert {"READY": 1} not in sent
    assert {"EXTEND_TIMEOUT_USEC": 30_000_000} in sent
    flush.record_run(OK, 0)
    heartbeat.report()
    heartbeat.report()
    assert sent.count({"READY": 1}) == 1


def test_a_status_line_is_sent_when_it_changes(sent: list[dict[str, str | int]]) -> None:
    lines = iter(["one", "one", "two"])
    heartbeat = Heartbeat([], lambda: next(lines))
    for _ in range(3):
        heartbeat.report()
    assert [note["STATUS"] for note in sent if "STATUS" in note] == ["one", "two"]


def test_the_line_shows_the_server_the_gpu_and_every_state_that_is_not_ok(tmp_path: Path) -> None:
    database = tmp_path / "x.db"
    database.write_bytes(bytes(12 * 2**20))
    health = [
        health_of("host"),
        health_of("gpu"),
        health_of("llama_server", State("up")),
        health_of("journal", State("failed")),
    ]
    assert (
        status_line(5, health, 2, database)
        == "sampling every 5 s; gpu ok; llama_server up; journal failed; models loaded 2; database 12 MB"
    )
    assert "models" not in status_line(5, health, None, database)
    assert "database" not in status_line(5, health, None, tmp_path / "missing.db")
