from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.database import Database
from collector.errors import DatabaseBusy
from collector.parsers.server_answers import ModelState, ServedModel
from collector.schema import Write
from collector.sources.llama.events import MODEL_EVENTS, ModelHistory
from collector.sources.llama.model_rows import ModelIndex


class Story:
    """A history over a real database, as the daemon keeps it."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.restart()

    def restart(self) -> None:
        """As after a new start of the collector."""
        self.index = ModelIndex(self.database.query)
        self.history = ModelHistory(self.database.query, self.index)

    def see(self, timestamp: int, *models: ServedModel, places: int | None = None) -> None:
        self._write(self.history.follow(timestamp, models, 11434, places))

    def end(self, timestamp: int) -> None:
        self._write(self.history.server_ended(timestamp))

    def _write(self, statements: list[Write]) -> None:
        with self.database.transaction() as connection:
            for statement in statements:
                connection.executemany(statement.statement, statement.rows)

    @property
    def events(self) -> list[tuple[str, str]]:
        rows = self.database.query("SELECT model, event FROM model_events ORDER BY id")
        return [(row["model"], row["event"]) for row in rows]

    def status(self, name: str) -> str:
        return str(self.database.query("SELECT status FROM models WHERE name = ?", (name,))[0]["status"])


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    with Database(tmp_path / "x.db", (MODEL_EVENTS,)) as database:
        yield Story(database)


def model(name: str, state: ModelState, exit_code: int | None = None) -> ServedModel:
    return ServedModel(name, f"/models/{name}.gguf", state, exit_code=exit_code)


def test_a_life_of_a_model_is_told_in_events_and_status(story: Story) -> None:
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
        story.see(timestamp, model("a", state))
        events += [("a", event)] if event else []
        assert story.events == events
        assert story.status("a") == status


def test_how_long_the_previous_state_lasted_is_known_from_the_second_change_on(story: Story) -> None:
    for timestamp, state in enumerate(("unloaded", "loading", "loaded")):
        story.see(timestamp, model("a", state))  # type: ignore[arg-type]
    rows = story.database.query(
        "SELECT previous_state, seconds_since_last AS s FROM model_events ORDER BY id"
    )
    assert [row["previous_state"] for row in rows] == ["unloaded", "loading"]
    assert story.database.query("SELECT * FROM model_events WHERE model_id IS NULL") == []
    assert rows[0]["s"] is None
    assert 0 <= rows[1]["s"] < 5


def test_a_model_that_made_room_was_evicted(story: Story) -> None:
    story.see(1, model("a", "loaded"), model("b", "loaded"), model("c", "unloaded"), places=2)
    story.see(2, model("a", "unloaded"), model("b", "loaded"), model("c", "loading"), places=2)
    assert story.events[-2:] == [("a", "evicted"), ("c", "loading")]


def test_a_model_that_went_while_there_was_room_was_unloaded(story: Story) -> None:
    story.see(1, model("a", "loaded"), model("c", "unloaded"), places=2)
    story.see(2, model("a", "unloaded"), model("c", "loading"), places=2)
    assert ("a", "unloaded") in story.events


def test_the_end_of_the_server_unloads_all(story: Story) -> None:
    story.see(1, model("a", "loaded"), model("b", "failed"), model("c", "sleeping"))
    story.end(2)
    story.end(3)
    assert story.events[-2:] == [("a", "unloaded"), ("c", "unloaded")]
    assert [story.status(name) for name in "abc"] == ["unloaded", "error", "unloaded"]


def test_a_server_that_ends_while_it_loads_has_failed_to(story: Story) -> None:
    story.see(1, model("a", "loading"))
    story.end(2)
    story.end(3)
    assert story.events == [("a", "loading"), ("a", "failed")]
    assert story.status("a") == "error"


def test_a_locked_database_delays_the_comparison_and_invents_nothing(story: Story) -> None:
    def locked(_statement: str, _parameters: object) -> list[dict[str, object]]:
        raise DatabaseBusy("locked")

    story.history = ModelHistory(locked, story.index)
    assert story.history.follow(1, (model("a", "loaded"),), None, None) == []
    assert story.history.server_ended(2) == []


def test_a_restart_of_the_collector_goes_on_where_it_was(story: Story) -> None:
    story.see(1, model("a", "loaded"), model("b", "loaded"))
    story.restart()
    story.see(2, model("a", "loaded"), model("b", "unloaded"))
    assert story.events == [("a", "loaded"), ("b", "loaded"), ("b", "unloaded")]


def test_a_row_of_a_scan_is_found_by_its_path_and_keeps_what_the_user_owns(
    story: Story, tmp_path: Path
) -> None:
    file = tmp_path / "real.gguf"
    file.touch()
    (tmp_path / "link.gguf").symlink_to(file)
    row = story.database.models.save({"name": "real", "model_path": str(file), "favorite": 1})
    story.see(1, ServedModel("alias", str(tmp_path / "link.gguf"), "loaded"))
    (saved,) = story.database.models.get_all()
    assert (saved["id"], saved["favorite"], saved["status"]) == (row["id"], 1, "loaded")


def test_a_model_without_a_row_gets_one_of_what_is_known(story: Story) -> None:
    story.see(1, model("a", "loaded"), ServedModel("remote", None, "unloaded"))
    rows = {row["name"]: row for row in story.database.models.get_all()}
    assert set(rows) == {"a", "remote"}
    assert (rows["a"]["model_path"], rows["a"]["file_size"], rows["a"]["quantization"]) == (
        "/models/a.gguf",
        None,
        None,
    )
    story.restart()
    story.see(2, model("a", "loaded"), ServedModel("remote", None, "unloaded"))
    assert len(story.database.models.get_all()) == 2


def test_rows_that_wait_for_their_commit_are_not_made_twice(story: Story) -> None:
    first = story.history.follow(1, (model("a", "loaded"),), None, None)
    story.index._read_at = float("-inf")  # a long flush interval: the table is read again before the commit
    second = story.history.follow(2, (model("a", "loaded"),), None, None)
    story._write(first + second)
    assert len(story.database.models.get_all()) == 1


def test_a_model_that_still_says_loaded_and_is_not_served_is_unloaded(story: Story) -> None:
    story.database.models.save({"name": "stale", "status": "loaded"})
    story.see(1, model("a", "loaded"))
    assert story.status("stale") == "unloaded"
