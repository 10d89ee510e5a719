"""Events and `models.status` of the models of one server and of several, with a real database."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from collector.catalog import OWN_TABLES
from collector.database import Database
from collector.errors import DatabaseBusy, DatabaseError
from collector.parsers.server_answers import ModelState, ServedModel
from collector.schema import Write
from collector.sources.llama.events import ModelEvents
from collector.sources.llama.model_rows import ModelIndex, ModelStatuses
from collector.sources.llama.runs import ObservedProcess, ServerRuns

SERVER, OTHER = "127.0.0.1:8080", "127.0.0.1:8081"


class History:
    """A database with the events of one or two servers, as one collector after another writes them."""

    def __init__(self, database: Database, servers: tuple[str, ...] = (SERVER,)) -> None:
        self.database = database
        self._servers = servers
        self.restart()

    def restart(self) -> None:
        """Replace all objects, as a restart of the collector does."""
        self.index = ModelIndex(self.database)
        self.runs = ServerRuns(self.database.query)
        self.statuses = ModelStatuses(self.index, self._servers)
        self.of_server = {name: ModelEvents(name, self.index, self.runs) for name in self._servers}

    def sample(
        self, timestamp: int, *models: ServedModel, max_loaded: int | None = None, server: str = SERVER
    ) -> None:
        """Write one sample of one server."""
        self.index.add_missing(models)
        for model in models:
            if model.state in ("loaded", "sleeping"):
                self._write(self.runs.assign(ObservedProcess(timestamp, server, "", model, None)).changes)
        events = self.of_server[server]
        changes = events.compare(models, max_loaded)
        self._write(self.statuses.update(server, timestamp, events.reported_models()))
        self._write(events.writes(timestamp, changes, 11434))

    def end(self, timestamp: int) -> None:
        """Write a sample in which the server is down."""
        events = self.of_server[SERVER]
        changes = events.compare(events.models_after_server_end(), None)
        self._write(self.statuses.update(SERVER, timestamp, events.reported_models()))
        self._write(events.writes(timestamp, changes, None, "ended"))

    def _write(self, writes: list[Write]) -> None:
        with self.database.transaction() as connection:
            for write in writes:
                connection.executemany(write.statement, write.rows)

    @property
    def events(self) -> list[tuple[str, str]]:
        rows = self.database.query("SELECT model, event FROM model_events ORDER BY id")
        return [(row["model"], row["event"]) for row in rows]

    def status(self, name: str) -> str:
        return str(self.database.query("SELECT status FROM models WHERE name = ?", (name,))[0]["status"])


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    with Database(tmp_path / "x.db", OWN_TABLES) as database:
        yield History(database)


@pytest.fixture
def two_servers(tmp_path: Path) -> Iterator[History]:
    with Database(tmp_path / "x.db", OWN_TABLES) as database:
        yield History(database, (SERVER, OTHER))


def model(name: str, state: ModelState, exit_code: int | None = None) -> ServedModel:
    return ServedModel(name, f"/models/{name}.gguf", state, exit_code=exit_code)


def test_every_change_of_a_model_is_recorded_as_event_and_status(history: History) -> None:
    expected: list[tuple[ModelState, str | None, str]] = [
        ("unloaded", None, "unloaded"),
        ("loading", "loading", "loading"),
        ("loaded", "loaded", "loaded"),
        ("loaded", None, "loaded"),
        ("sleeping", "sleeping", "idle"),
        ("loaded", "woke", "loaded"),
        ("failed", "crashed", "error"),
        ("loading", "loading", "loading"),
        ("failed", "failed", "error"),
        ("loading", "loading", "loading"),
        ("unloaded", "unloaded", "unloaded"),
    ]
    events: list[tuple[str, str]] = []
    for timestamp, (state, event, status) in enumerate(expected):
        history.sample(timestamp, model("a", state))
        events += [("a", event)] if event else []
        assert history.events == events
        assert history.status("a") == status


def test_the_duration_of_the_previous_state_is_stored_from_the_second_change_on(history: History) -> None:
    for timestamp, state in enumerate(("unloaded", "loading", "loaded")):
        history.sample(timestamp, model("a", state))  # type: ignore[arg-type]
    rows = history.database.query(
        "SELECT previous_state, seconds_since_last AS s FROM model_events ORDER BY id"
    )
    assert [row["previous_state"] for row in rows] == ["unloaded", "loading"]
    assert history.database.query("SELECT * FROM model_events WHERE model_id IS NULL") == []
    assert rows[0]["s"] is None
    assert rows[1]["s"] is None  # it lasted no longer than the interval between two samples


def test_a_model_that_was_unloaded_to_load_another_one_was_evicted(history: History) -> None:
    history.sample(1, model("a", "loaded"), model("b", "loaded"), model("c", "unloaded"), max_loaded=2)
    history.sample(2, model("a", "unloaded"), model("b", "loaded"), model("c", "loading"), max_loaded=2)
    assert history.events[-2:] == [("a", "evicted"), ("c", "loading")]


def test_a_model_that_was_unloaded_below_the_limit_was_not_evicted(history: History) -> None:
    history.sample(1, model("a", "loaded"), model("c", "unloaded"), max_loaded=2)
    history.sample(2, model("a", "unloaded"), model("c", "loading"), max_loaded=2)
    assert ("a", "unloaded") in history.events


def test_the_end_of_the_server_unloads_all_its_models(history: History) -> None:
    history.sample(1, model("a", "loaded"), model("b", "failed"), model("c", "sleeping"))
    history.end(2)
    history.end(3)
    assert history.events[-2:] == [("a", "unloaded"), ("c", "unloaded")]
    assert [history.status(name) for name in "abc"] == ["unloaded", "error", "unloaded"]


def test_a_model_whose_server_ends_while_it_loads_has_failed(history: History) -> None:
    history.sample(1, model("a", "loading"))
    history.end(2)
    history.end(3)
    assert history.events == [("a", "loading"), ("a", "failed")]
    assert history.status("a") == "error"


def test_a_locked_database_delays_the_comparison_and_writes_no_event(history: History) -> None:
    def locked(_statement: str, _parameters: object) -> list[dict[str, Any]]:
        raise DatabaseBusy("locked")

    events = ModelEvents(SERVER, history.index, ServerRuns(locked))
    for _ in range(2):
        with pytest.raises(DatabaseBusy):
            events.compare((model("a", "loaded"),), None)
    assert events.models_after_server_end() == []


def test_a_model_that_cannot_be_saved_has_no_row_and_disturbs_no_sample(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise DatabaseError("the disk is full")

    monkeypatch.setattr(history.database, "transaction", full)
    history.index.add_missing((model("a", "loaded"),))
    monkeypatch.undo()
    assert history.index.find(model("a", "loaded")) is None
    history.index.add_missing((model("a", "loaded"),))
    assert history.index.find(model("a", "loaded")) is not None


def test_a_restarted_collector_continues_from_the_stored_events(history: History) -> None:
    history.sample(1, model("a", "loaded"), model("b", "loaded"))
    history.restart()
    history.sample(2, model("a", "loaded"), model("b", "unloaded"))
    assert history.events == [("a", "loaded"), ("b", "loaded"), ("b", "unloaded")]


def test_a_row_of_a_scan_is_found_by_its_path_and_keeps_the_values_of_the_user(
    history: History, tmp_path: Path
) -> None:
    file = tmp_path / "real.gguf"
    file.touch()
    (tmp_path / "link.gguf").symlink_to(file)
    row = history.database.models.save({"name": "real", "model_path": str(file), "favorite": 1})
    history.sample(1, ServedModel("alias", str(tmp_path / "link.gguf"), "loaded"))
    (saved,) = history.database.models.get_all()
    assert (saved["id"], saved["favorite"], saved["status"]) == (row["id"], 1, "loaded")


def test_a_model_without_a_row_gets_one_with_the_reported_values(history: History) -> None:
    history.sample(1, model("a", "loaded"), ServedModel("remote", None, "unloaded"))
    rows = {row["name"]: row for row in history.database.models.get_all()}
    assert set(rows) == {"a", "remote"}
    assert (rows["a"]["model_path"], rows["a"]["file_size"], rows["a"]["quantization"]) == (
        "/models/a.gguf",
        None,
        None,
    )
    history.restart()
    history.sample(2, model("a", "loaded"), ServedModel("remote", None, "unloaded"))
    assert len(history.database.models.get_all()) == 2


def test_a_row_that_a_scan_saved_in_the_meantime_is_used(history: History) -> None:
    assert history.index.find(model("a", "loaded")) is None
    row = history.database.models.save({"name": "a", "model_path": "/models/a.gguf"})
    history.sample(1, model("a", "loaded"))
    assert [one["id"] for one in history.database.models.get_all()] == [row["id"]]
    assert history.database.query("SELECT model_id FROM model_events")[0]["model_id"] == row["id"]


def test_a_loaded_row_that_no_server_reports_becomes_unloaded(history: History) -> None:
    history.database.models.save({"name": "stale", "status": "loaded"})
    history.sample(1, model("a", "loaded"))
    assert history.status("stale") == "unloaded"


def test_an_event_refers_to_its_run_and_the_run_has_its_outcome(history: History) -> None:
    history.sample(1, model("a", "loading"))
    history.sample(2, model("a", "loaded"))
    history.sample(3, model("a", "failed", exit_code=139))
    rows = history.database.query("SELECT event, run_id, server FROM model_events ORDER BY id")
    (run,) = history.database.query("SELECT * FROM server_runs")
    assert [(row["event"], row["run_id"]) for row in rows] == [
        ("loading", None),
        ("loaded", run["id"]),
        ("crashed", run["id"]),
    ]
    assert {row["server"] for row in rows} == {SERVER}
    assert (run["outcome"], run["exit_code"], run["ended_at"]) == ("crashed", 139, 3)


def test_a_run_that_ends_with_its_server_has_the_outcome_ended(history: History) -> None:
    history.sample(1, model("a", "loaded"))
    history.end(2)
    (run,) = history.database.query("SELECT outcome, ended_at FROM server_runs")
    assert tuple(run.values()) == ("ended", 2)


def test_two_servers_do_not_unload_each_other_s_models(two_servers: History) -> None:
    for timestamp in (1, 2, 3):
        two_servers.sample(timestamp, model("a", "loaded"))
        two_servers.sample(timestamp, model("b", "loaded"), server=OTHER)
    assert (two_servers.status("a"), two_servers.status("b")) == ("loaded", "loaded")
    assert two_servers.events == [("a", "loaded"), ("b", "loaded")]


@pytest.mark.parametrize(
    ("one", "other", "status"),
    [
        ("loaded", "unloaded", "loaded"),
        ("unloaded", "loaded", "loaded"),
        ("sleeping", "loading", "loading"),
        ("sleeping", "failed", "idle"),
        ("failed", "unloaded", "error"),
        ("unloaded", "unloaded", "unloaded"),
    ],
)
def test_the_status_of_a_model_is_the_best_of_its_states_on_all_servers(
    two_servers: History, one: ModelState, other: ModelState, status: str
) -> None:
    for timestamp in (1, 2):
        two_servers.sample(timestamp, model("a", one))
        two_servers.sample(timestamp, model("a", other), server=OTHER)
    assert two_servers.status("a") == status


def test_a_loaded_row_is_kept_until_every_server_has_reported(two_servers: History) -> None:
    two_servers.database.models.save({"name": "stale", "status": "loaded"})
    two_servers.sample(1, model("a", "loaded"))
    assert two_servers.status("stale") == "loaded"
    two_servers.sample(1, model("b", "loaded"), server=OTHER)
    assert two_servers.status("stale") == "unloaded"


def test_a_restarted_collector_compares_each_server_with_its_own_events(two_servers: History) -> None:
    two_servers.sample(1, model("a", "loaded"))
    two_servers.sample(1, model("a", "unloaded"), server=OTHER)
    two_servers.sample(2, model("a", "loading"), server=OTHER)
    two_servers.restart()
    two_servers.sample(3, model("a", "loaded"))
    two_servers.sample(3, model("a", "loaded"), server=OTHER)
    rows = two_servers.database.query("SELECT server, event FROM model_events ORDER BY id")
    assert [tuple(row.values()) for row in rows] == [
        (SERVER, "loaded"),
        (OTHER, "loading"),
        (OTHER, "loaded"),
    ]


@pytest.mark.parametrize("status", ["loaded", "loading"])
def test_a_row_that_an_earlier_collector_left_in_memory_is_unloaded_once_every_server_has_reported(
    tmp_path: Path, status: str
) -> None:
    other = "127.0.0.1:2"
    with Database(tmp_path / "two.db", OWN_TABLES) as database:
        database.models.save({"name": "left", "status": status})
        database.models.save({"name": "of another program", "status": "error"})
        history = History(database, (SERVER, other))
        history.sample(1, ServedModel("a", "/a.gguf", "loaded"))
        assert history.status("left") == status
        history.sample(2, ServedModel("b", "/b.gguf", "loaded"), server=other)
        assert history.status("left") == "unloaded"
        assert history.status("of another program") == "error"
