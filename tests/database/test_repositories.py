import json
import re
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from collector.database import Database
from collector.errors import DatabaseError, ValueNotStorable

LLAMA = {
    "name": "llama-2-7b.Q4_K_M",
    "type": "llama",
    "status": "idle",
    "file_size": 4268994560,
    "model_path": "/models/llama-2-7b.Q4_K_M.gguf",
}


class TestModels:
    def test_a_saved_model_gets_an_id_of_the_documented_pattern_and_timestamps(
        self, database: Database
    ) -> None:
        before = int(time.time())
        saved = database.models.save(LLAMA)
        assert re.fullmatch(r"model_\d{10}_[a-z0-9]{9}", saved["id"])
        assert before <= saved["created_at"] == saved["updated_at"] <= time.time()
        assert {name: saved[name] for name in LLAMA} == LLAMA

    def test_missing_fields_take_the_documented_defaults(self, database: Database) -> None:
        saved = database.models.save({"name": "x"})
        expected = {
            "type": "llama", "status": "idle", "parameters": "{}", "model_path": None, "file_size": None,
            "params": None, "quantization": None, "ctx_size": 4096, "embedding_size": 0, "block_count": 0,
            "head_count": 0, "head_count_kv": 0, "ffn_dim": 0, "file_type": 0, "batch_size": 512, "threads": 4,
            "favorite": 0,
        }  # fmt: skip
        assert {name: saved[name] for name in expected} == expected

    def test_saving_an_existing_id_replaces_the_record_and_keeps_created_at(self, database: Database) -> None:
        first = database.models.save(LLAMA | {"created_at": 1000, "favorite": 1})
        second = database.models.save({"id": first["id"], "name": "renamed"})
        assert second["name"] == "renamed"
        assert second["created_at"] == 1000
        assert (second["favorite"], second["file_size"]) == (0, None)
        assert len(database.models.get_all()) == 1

    def test_saving_keeps_columns_that_other_programs_added(self, database: Database) -> None:
        saved = database.models.save(LLAMA)
        with database.transaction() as connection:
            connection.execute("ALTER TABLE models ADD COLUMN theirs TEXT")
            connection.execute("UPDATE models SET theirs = 'kept'")
        assert database.models.save(saved | {"name": "new"})["theirs"] == "kept"

    def test_objects_are_stored_as_json(self, database: Database) -> None:
        saved = database.models.save({"name": "x", "parameters": {"top_k": 40}, "params": {"vocab_size": 3}})
        assert json.loads(saved["parameters"]) == {"top_k": 40}
        assert json.loads(saved["params"]) == {"vocab_size": 3}

    def test_all_models_are_sorted_newest_first_and_then_by_id(self, database: Database) -> None:
        for model_id, created_at in (("b", 5), ("a", 5), ("c", 9), ("d", 1)):
            database.models.save({"id": model_id, "name": "x", "created_at": created_at})
        assert [row["id"] for row in database.models.get_all()] == ["c", "b", "a", "d"]

    def test_an_unknown_id_returns_none(self, database: Database) -> None:
        assert database.models.get_by_id("model_1_x") is None

    def test_an_update_changes_only_the_given_fields_and_updated_at(self, database: Database) -> None:
        saved = database.models.save(LLAMA)
        with database.transaction() as connection:
            connection.execute("UPDATE models SET updated_at = 7")
        updated = database.models.update(saved["id"], {"status": "loaded", "favorite": 1, "nonsense": 3})
        assert updated is not None
        assert updated["updated_at"] > 7
        assert updated | {"updated_at": saved["updated_at"]} == saved | {"status": "loaded", "favorite": 1}

    @pytest.mark.parametrize("updates", [{}, {"nonsense": 1}, {"id": "other"}, {"created_at": 3}])
    def test_an_update_without_a_valid_field_returns_none_and_changes_nothing(
        self, database: Database, updates: dict[str, Any]
    ) -> None:
        saved = database.models.save(LLAMA)
        assert database.models.update(saved["id"], updates) is None
        assert database.models.get_by_id(saved["id"]) == saved

    def test_an_update_of_an_unknown_model_returns_none(self, database: Database) -> None:
        assert database.models.update("model_1_x", {"status": "loaded"}) is None

    def test_delete_returns_whether_there_was_one(self, database: Database) -> None:
        saved = database.models.save(LLAMA)
        assert database.models.delete(saved["id"]) is True
        assert database.models.delete(saved["id"]) is False

    def test_cleanup_removes_exactly_the_models_whose_file_is_missing(
        self, database: Database, tmp_path: Path
    ) -> None:
        (tmp_path / "here.gguf").touch()
        database.models.save({"id": "here", "name": "a", "model_path": str(tmp_path / "here.gguf")})
        database.models.save({"id": "gone", "name": "b", "model_path": str(tmp_path / "gone.gguf")})
        database.models.save({"id": "nowhere", "name": "c"})
        assert database.models.cleanup_missing_files() == 1
        assert {row["id"] for row in database.models.get_all()} == {"here", "nowhere"}

    def test_favorites_are_sorted_by_name(self, database: Database) -> None:
        for name, favorite in (("b", 1), ("c", 0), ("a", 1)):
            database.models.save({"name": name, "favorite": favorite})
        assert [row["name"] for row in database.models.get_favorites()] == ["a", "b"]

    @pytest.mark.parametrize(
        ("model", "column"),
        [
            ({}, "name"),
            ({"name": None}, "name"),
            ({"name": "x", "file_size": 2**63}, "file_size"),
            ({"name": "x", "quantization": object()}, "quantization"),
            ({"name": "\ud800"}, "name"),
            ({"name": "x", "ctx_size": [1]}, "ctx_size"),
        ],
    )
    def test_a_value_that_cannot_be_stored_is_named(
        self, database: Database, model: dict[str, Any], column: str
    ) -> None:
        with pytest.raises(ValueNotStorable, match=rf"models\.{column}") as caught:
            database.models.save(model)
        assert caught.value.value == model.get(column)
        assert database.models.get_all() == []

    def test_many_saves_in_one_transaction_are_all_or_nothing(self, database: Database) -> None:
        with pytest.raises(ValueNotStorable), database.transaction():
            database.models.save({"name": "a"})
            database.models.save({"name": None})
        assert database.models.get_all() == []


class TestMetrics:
    def test_missing_fields_are_zero_and_none_is_null(self, database: Database) -> None:
        database.metrics.save({"cpu_usage": 45.5, "active_models": None})
        latest = database.metrics.get_latest()
        assert latest is not None
        assert (latest["cpu_usage"], latest["memory_usage"], latest["swap_usage"]) == (45.5, 0, 0)
        assert latest["active_models"] is None
        assert abs(latest["timestamp"] - time.time()) < 5

    def test_history_is_newest_first_with_ties_by_id(self, database: Database) -> None:
        for cpu, timestamp in ((1, 50), (2, 60), (3, 60), (4, 10)):
            database.metrics.save({"cpu_usage": cpu, "timestamp": timestamp})
        assert [row["cpu_usage"] for row in database.metrics.get_history()] == [3, 2, 1, 4]
        assert [row["cpu_usage"] for row in database.metrics.get_history(2)] == [3, 2]

    def test_history_returns_a_hundred_rows_by_default(self, database: Database) -> None:
        for _ in range(101):
            database.metrics.save({})
        assert len(database.metrics.get_history()) == 100

    def test_without_rows_the_latest_is_none(self, database: Database) -> None:
        assert database.metrics.get_latest() is None

    def test_prune_deletes_the_oldest_by_time(self, database: Database) -> None:
        for cpu, timestamp in ((1, 50), (2, 60), (3, 60), (4, 10), (5, 55)):
            database.metrics.save({"cpu_usage": cpu, "timestamp": timestamp})
        assert database.metrics.prune(2) == 3
        assert [row["cpu_usage"] for row in database.metrics.get_history()] == [3, 2]
        assert database.metrics.prune() == 0

    def test_prune_deletes_more_rows_than_one_chunk(self, database: Database) -> None:
        with database.transaction() as connection:
            connection.executemany("INSERT INTO metrics (timestamp) VALUES (?)", [(7,)] * 12_001)
        assert database.metrics.prune() == 2001
        assert database.metrics.prune(0) == 10_000

    def test_prune_refuses_a_negative_number(self, database: Database) -> None:
        with pytest.raises(ValueError, match="-1"):
            database.metrics.prune(-1)

    def test_a_value_that_cannot_be_stored_is_named(self, database: Database) -> None:
        with pytest.raises(ValueNotStorable, match=r"metrics\.uptime"):
            database.metrics.save({"uptime": 2**64})


class TestLogs:
    def test_added_records_are_returned_newest_first_with_the_default_source(
        self, database: Database
    ) -> None:
        database.logs.add("info", "first", "models")
        database.logs.add("error", "second")
        newest, oldest = database.logs.get_all()
        assert (newest["level"], newest["message"], newest["source"]) == ("error", "second", "server")
        assert oldest["source"] == "models"

    def test_the_limit_is_respected(self, database: Database) -> None:
        for number in range(150):
            database.logs.add("info", str(number))
        assert len(database.logs.get_all()) == 100
        assert [row["message"] for row in database.logs.get_all(2)] == ["149", "148"]

    def test_clear_returns_the_number_of_deleted_records(self, database: Database) -> None:
        database.logs.add("info", "x")
        assert (database.logs.clear(), database.logs.clear()) == (1, 0)

    def test_a_record_without_a_level_is_refused(self, database: Database) -> None:
        with pytest.raises(ValueNotStorable, match=r"logs\.level"):
            database.logs.add(None, "x")  # type: ignore[arg-type]


class TestConfig:
    def test_without_a_saved_configuration_the_documented_defaults_are_returned(
        self, database: Database
    ) -> None:
        assert database.config.get() == {
            "serverPath": "/usr/local/bin/llama-server",
            "host": "localhost",
            "port": 8080,
            "baseModelsPath": str(Path.home() / "models"),
            "ctx_size": 2048,
            "batch_size": 512,
            "threads": 4,
            "llama_server_enabled": True,
            "llama_server_port": 8080,
            "llama_server_host": "0.0.0.0",
            "llama_server_metrics": True,
        }

    def test_saved_values_override_the_defaults(self, database: Database) -> None:
        database.config.save({"port": 9000, "theirs": [1, {"a": None}]})
        config = database.config.get()
        assert (config["port"], config["theirs"], config["threads"]) == (9000, [1, {"a": None}], 4)

    def test_a_configuration_that_is_not_json_is_reported(self, database: Database) -> None:
        with database.transaction() as connection:
            connection.execute("INSERT INTO server_config VALUES ('config', '{oops')")
        with pytest.raises(DatabaseError, match=r"server_config.value of 'config' is not JSON"):
            database.config.get()

    def test_a_value_that_is_not_json_cannot_be_saved(self, database: Database) -> None:
        with pytest.raises(ValueNotStorable, match=r"server_config\.value"):
            database.config.save({"when": object()})


class TestMetadata:
    @pytest.mark.parametrize(
        "value", [1704112345, {"theme": "dark"}, ["m1", "m2"], "text", None, True, 1.5, "ü\n\"'"]
    )
    def test_any_json_value_is_returned_as_it_was_set(self, database: Database, value: object) -> None:
        database.meta.set("key", value)
        assert database.meta.get("key", "default") == value

    def test_a_missing_key_returns_the_default(self, database: Database) -> None:
        assert database.meta.get("missing", 0) == 0
        assert database.meta.get("missing") is None

    def test_setting_a_key_again_replaces_the_value_and_the_time(self, database: Database) -> None:
        database.meta.set("key", 1)
        with database.transaction() as connection:
            connection.execute("UPDATE metadata SET updated_at = 5")
        database.meta.set("key", 2)
        (row,) = database.query("SELECT * FROM metadata")
        assert row["value"] == "2"
        assert row["updated_at"] > 5

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}])
    def test_a_value_that_is_not_json_cannot_be_set(self, database: Database, value: object) -> None:
        with pytest.raises(ValueNotStorable, match=r"metadata\.value"):
            database.meta.set("key", value)


def test_repositories_may_be_called_from_many_threads(database: Database) -> None:
    def work(number: int) -> None:
        for _ in range(50):
            database.logs.add("info", str(number))
            database.meta.set(str(number), number)
            database.metrics.get_latest()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert database.query("SELECT count(*) AS n FROM logs") == [{"n": 400}]


def test_another_reader_never_finds_part_of_a_transaction(database: Database) -> None:
    reader = sqlite3.connect(database.path)
    with database.transaction():
        database.logs.add("info", "one")
        assert reader.execute("SELECT count(*) FROM logs").fetchone() == (0,)
        database.logs.add("info", "two")
    assert reader.execute("SELECT count(*) FROM logs").fetchone() == (2,)
    reader.close()
