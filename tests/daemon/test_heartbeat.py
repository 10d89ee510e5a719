import time
from pathlib import Path

import pytest

from collector.daemon import systemd
from collector.daemon.heartbeat import Heartbeat, status_line
from collector.health import OK, Health, State


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str | int]]:
    notes: list[dict[str, str | int]] = []
    monkeypatch.setattr(systemd, "notify", lambda **states: notes.append(states))
    return notes


def record_run(name: str, state: State = OK, seconds_ago: float = 0) -> Health:
    health = Health(name)
    health.record_run(state, 0)
    health.last_run = time.monotonic() - seconds_ago
    return health


def test_a_job_that_does_not_come_back_silences_the_watchdog(told: list[dict[str, str | int]]) -> None:
    Heartbeat(
        [(record_run("flush", seconds_ago=29), 5), (record_run("sample", seconds_ago=31), 5)], lambda: ""
    ).report()
    assert {"WATCHDOG": 1} not in told


def test_a_job_that_fails_but_comes_back_does_not(told: list[dict[str, str | int]]) -> None:
    waiting = State("waiting", "another program holds a lock", "warning", success=False)
    Heartbeat([(record_run("flush", waiting), 5)], lambda: "").report()
    assert {"WATCHDOG": 1} in told


def test_a_long_interval_has_as_much_patience(told: list[dict[str, str | int]]) -> None:
    Heartbeat([(record_run("sample", seconds_ago=3 * 3600 - 10), 3600)], lambda: "").report()
    assert {"WATCHDOG": 1} in told


def test_ready_is_told_once_when_the_first_commit_went_through(told: list[dict[str, str | int]]) -> None:
    flush = record_run("flush", State("failed", "the disk is full", "error", success=False))
    heartbeat = Heartbeat([(record_run("sample"), 5), (flush, 5)], lambda: "")
    heartbeat.report()
    assert {"READY": 1} not in told
    assert {"EXTEND_TIMEOUT_USEC": 30_000_000} in told
    flush.record_run(OK, 0)
    heartbeat.report()
    heartbeat.report()
    assert told.count({"READY": 1}) == 1


def test_a_status_line_is_told_when_it_changes(told: list[dict[str, str | int]]) -> None:
    lines = iter(["one", "one", "two"])
    heartbeat = Heartbeat([], lambda: next(lines))
    for _ in range(3):
        heartbeat.report()
    assert [note["STATUS"] for note in told if "STATUS" in note] == ["one", "two"]


def test_the_line_tells_the_server_the_gpu_and_whatever_is_not_well(tmp_path: Path) -> None:
    database = tmp_path / "x.db"
    database.write_bytes(bytes(12 * 2**20))
    health = [
        record_run("host"),
        record_run("gpu"),
        record_run("llama_server", State("up")),
        record_run("journal", State("failed")),
    ]
    assert (
        status_line(5, health, 2, database)
        == "sampling every 5 s; gpu ok; llama_server up; journal failed; models loaded 2; database 12 MB"
    )
    assert "models" not in status_line(5, health, None, database)
    assert "database" not in status_line(5, health, None, tmp_path / "missing.db")
