"""Views: their results for inserted rows, on the connection that the collector uses."""

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from collector.catalog import OWN_TABLES
from collector.database import Database
from collector.database.connection import connect_read_only
from collector.database.documented import LOGS, METRICS, MODELS
from collector.logs.rows.requests import REQUESTS
from collector.schema import SqlValue, Table, View
from collector.sources.gpu.source import GPU_METRICS
from collector.sources.host import HOST_METRICS
from collector.sources.llama.events import MODEL_EVENTS
from collector.sources.llama.metrics import LLAMA_METRICS
from collector.sources.llama.run_table import SERVER_RUNS
from collector.views import VIEWS
from tests.support.collector import Collector
from tests.support.llama_router import LlamaRouter
from tests.support.version_010 import upgrade_rows

HOUR = 3600
NOON = 1_781_265_600  # 2026-06-12 12:00:00 UTC
ALIASES = ("one", "later", "earlier", "first", "last", "row", "sample", "gpu_step", "token_steps")
"""Aliases of these tables in the SQL of the views."""
TIME_SERIES = ("metrics", "logs", "host_metrics", "gpu_metrics", "llama_metrics")


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    with Database(tmp_path / "views.db", OWN_TABLES, VIEWS) as opened:
        yield opened
    monkeypatch.undo()
    time.tzset()


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    with Database(tmp_path_factory.mktemp("empty") / "views.db", OWN_TABLES, VIEWS) as opened:
        yield opened


def insert(database: Database, table: Table, *rows: Mapping[str, Any]) -> None:
    with database.transaction() as connection:
        connection.executemany(table.insert_statement, [table.row(row) for row in rows])


def insert_tokens(database: Database, *rows: tuple[int, float | None], **more: SqlValue) -> None:
    """Insert rows of one model, each with a timestamp and the tokens generated so far."""
    for timestamp, tokens in rows:
        values: dict[str, SqlValue] = {"timestamp": timestamp, "model": "m", "tokens_predicted_total": tokens}
        if "run_id" in more:  # else a row of version 0.1.0
            values["server"] = "127.0.0.1:8080"
        insert(database, LLAMA_METRICS, values | more)


def ask(database: Database, question: str) -> list[tuple[Any, ...]]:
    """Return the rows of a query. Inserted rows without a run, as in version 0.1.0, are upgraded before."""
    upgrade_rows(database)
    return [tuple(row.values()) for row in database.query(question)]


TOKENS = "SELECT timestamp, model, generated_tokens FROM tokens_by_hour ORDER BY timestamp, model"


def test_tokens_of_an_hour_are_the_growth_of_the_counter(database: Database) -> None:
    insert_tokens(database, (NOON, 100), (NOON + 5, 130), (NOON + 10, 130), (NOON + 15, 190))
    assert ask(database, TOKENS) == [(NOON, "m", 90)]


def test_a_counter_that_fell_started_again_at_0(database: Database) -> None:
    insert_tokens(database, (NOON, 100), (NOON + 5, 150), (NOON + 10, 20), (NOON + 15, 25))
    assert ask(database, TOKENS) == [(NOON, "m", 50 + 20 + 5)]


def test_one_counter_that_fell_shows_that_all_started_again_at_0(database: Database) -> None:
    insert_tokens(database, (NOON, 100), n_decode_total=500)
    insert_tokens(database, (NOON + 5, 150), n_decode_total=30)
    assert ask(database, TOKENS) == [(NOON, "m", 150)]


def test_a_new_process_started_at_0_even_if_its_counter_is_higher(database: Database) -> None:
    insert_tokens(database, (NOON, 100), uptime_seconds=900.0)
    insert_tokens(database, (NOON + 60, 150), uptime_seconds=40.0)
    assert ask(database, TOKENS) == [(NOON, "m", 150)]


@pytest.mark.parametrize("step", [3, -3, 3600, -3600, 86_400, -86_400])
def test_setting_the_clock_changes_no_sum_of_rows_of_version_0_1_0(database: Database, step: int) -> None:
    for second, tokens in ((0, 100), (5, 400), (10, 500), (15, 700)):
        clock = NOON + second + (step if second >= 10 else 0)
        insert_tokens(database, (clock, tokens), uptime_seconds=90_000.0 + second)
    assert sum(row[2] for row in ask(database, TOKENS) if row[2] is not None) == 600


@pytest.mark.parametrize("step", [3, -3, 3600, -3600, 86_400, -86_400])
def test_setting_the_clock_changes_no_sum(database: Database, step: int) -> None:
    for number, (second, tokens) in enumerate(((0, 100), (5, 400), (10, 500), (15, 700), (20, 30), (25, 50))):
        clock = NOON + second + (step if second >= 10 else 0)
        run = {"run_id": 1 + (number >= 4), "counted_from_zero": int(number == 4)}
        insert_tokens(database, (clock, tokens), uptime_seconds=9000.0 + second, **run)
    assert sum(row[2] for row in ask(database, TOKENS) if row[2] is not None) == 600 + 50


def test_the_first_row_of_a_run_that_began_before_the_first_sample_counts_nothing(
    database: Database,
) -> None:
    insert_tokens(database, (NOON, 7000), run_id=1, counted_from_zero=0)
    insert_tokens(database, (NOON + 5, 7010), run_id=1, counted_from_zero=0)
    assert ask(database, TOKENS) == [(NOON, "m", 10)]


def test_runs_of_one_model_on_two_servers_are_counted_separately(database: Database) -> None:
    for second, (one, other) in enumerate(((100, 9000), (130, 9001), (140, 9005))):
        insert_tokens(database, (NOON + second, one), run_id=1, server="a")
        insert_tokens(database, (NOON + second, other), run_id=2, server="b")
    assert ask(database, TOKENS) == [(NOON, "m", 40 + 5)]
    assert ask(database, "SELECT server, sum(generated_tokens) FROM token_steps GROUP BY server") == [
        ("a", 40),
        ("b", 5),
    ]


def test_pruned_rows_of_a_run_are_not_counted_again(database: Database) -> None:
    insert_tokens(database, (NOON, 100), run_id=1, counted_from_zero=1)
    insert_tokens(database, (NOON + 5, 400), (NOON + 10, 500), run_id=1, counted_from_zero=0)
    with database.transaction() as connection:
        connection.execute("DELETE FROM llama_metrics WHERE timestamp < ?", (NOON + 5,))
    assert ask(database, TOKENS) == [(NOON, "m", 100)]


def test_a_restart_within_a_second_is_detected_if_the_counters_fell(database: Database) -> None:
    insert_tokens(database, (NOON, 100), uptime_seconds=0.5)
    insert_tokens(database, (NOON + 1, 40), uptime_seconds=0.7)
    assert ask(database, TOKENS) == [(NOON, "m", 40)]


def test_two_rows_of_a_process_that_just_started_belong_to_one_run(database: Database) -> None:
    insert_tokens(database, (NOON, 100), uptime_seconds=0.0)  # it started in the same second as the sample
    insert_tokens(database, (NOON + 1, 140), uptime_seconds=0.2)
    assert ask(database, TOKENS) == [(NOON, "m", 40)]


def test_a_row_without_the_counter_is_skipped(database: Database) -> None:
    insert_tokens(database, (NOON, 100), (NOON + 5, None), (NOON + 10, 130))
    assert ask(database, TOKENS) == [(NOON, "m", 30)]


def test_rows_of_one_second_are_ordered_by_id(database: Database) -> None:
    insert_tokens(database, (NOON, 100), (NOON, 110), (NOON, 150), (NOON + 5, 160))
    assert ask(database, TOKENS) == [(NOON, "m", 60)]


def test_tokens_generated_before_the_first_sample_are_not_counted(database: Database) -> None:
    insert(database, METRICS, {"timestamp": NOON})
    insert_tokens(database, (NOON, 7000), uptime_seconds=90_000.0)
    assert ask(database, TOKENS) == [(NOON, "m", None)]


def test_a_model_that_was_loaded_between_two_samples_counts_from_its_first_row(database: Database) -> None:
    insert(database, METRICS, {"timestamp": NOON}, {"timestamp": NOON + 60})
    insert_tokens(database, (NOON + 60, 80), uptime_seconds=20.0)
    assert ask(database, TOKENS) == [(NOON, "m", 80)]


def test_growth_belongs_to_the_hour_of_the_later_row(database: Database) -> None:
    insert_tokens(database, (NOON - 5, 100), (NOON, 130), (NOON + 3 * HOUR + 5, 140))
    assert ask(database, TOKENS) == [
        (NOON - HOUR, "m", None),
        (NOON, "m", 30),
        (NOON + 3 * HOUR, "m", 10),
    ]
    assert ask(database, TOKENS.replace("ORDER", f"WHERE timestamp >= {NOON} ORDER"))[0] == (NOON, "m", 30)


def test_models_are_counted_separately(database: Database) -> None:
    insert_tokens(database, (NOON, 100), (NOON + 5, 130), model="a")
    insert_tokens(database, (NOON, 9000), (NOON + 5, 9001), model="b")
    assert ask(database, TOKENS) == [(NOON, "a", 30), (NOON, "b", 1)]


def test_a_day_begins_at_midnight_in_the_time_zone_of_the_reader(database: Database) -> None:
    insert_tokens(database, (NOON, 0), (NOON + 9 * HOUR, 10), (NOON + 11 * HOUR, 30), (NOON + 12 * HOUR, 70))
    assert ask(
        database, "SELECT local_time, timestamp, generated_tokens FROM tokens_by_day ORDER BY timestamp"
    ) == [
        ("2026-06-12 00:00:00", NOON - 14 * HOUR, 10),
        ("2026-06-13 00:00:00", NOON + 10 * HOUR, 60),
    ]


def test_the_day_of_the_clock_change_lasts_25_hours(database: Database) -> None:
    midnight = 1_792_879_200  # 2026-10-25 00:00:00 in Berlin, which sets its clocks back that night
    insert_tokens(
        database,
        (midnight - 5, 0),
        (midnight, 1),
        (midnight + 25 * HOUR - 1, 10),
        (midnight + 25 * HOUR, 100),
    )
    assert ask(
        database,
        "SELECT local_time, generated_tokens FROM tokens_by_day WHERE generated_tokens > 0 ORDER BY timestamp",
    ) == [
        ("2026-10-25 00:00:00", 10),
        ("2026-10-26 00:00:00", 90),
    ]


def test_shares_and_speeds_of_an_hour_are_computed_from_its_sums(database: Database) -> None:
    def counters(timestamp: int, *values: float) -> dict[str, SqlValue]:
        names = (
            "tokens_predicted_total", "tokens_predicted_seconds_total", "prompt_tokens_total", "prompt_seconds_total",
            "prompt_tokens_cached_total", "spec_decode_num_draft_tokens_total", "spec_decode_num_accepted_tokens_total",
        )  # fmt: skip
        return {"timestamp": timestamp, "model": "m", **dict(zip(names, values, strict=True))}

    insert(
        database,
        LLAMA_METRICS,
        counters(NOON, 0, 0, 0, 0, 0, 0, 0),
        counters(NOON + 5, 90, 3, 100, 0.5, 300, 40, 30),
        counters(NOON + 10, 100, 4, 200, 1, 600, 80, 50),
    )
    upgrade_rows(database)
    (row,) = database.query("SELECT * FROM tokens_by_hour")
    assert (row["generated_tokens_per_second"], row["prompt_tokens_per_second"]) == (25, 200)
    assert (row["cached_tokens"], row["cache_hit_share"]) == (600, 0.75)
    assert (row["drafted_tokens"], row["accepted_tokens"], row["acceptance_share"]) == (80, 50, 0.625)
    assert (row["generation_seconds"], row["prompt_seconds"], row["work_seconds"]) == (4, 1, 4)


@pytest.mark.parametrize("view", ["tokens_by_hour", "tokens_by_day"])
def test_speeds_are_those_of_requests_where_there_are_any(database: Database, view: str) -> None:
    counters: dict[str, SqlValue] = {
        "tokens_predicted_seconds_total": 0.0,
        "prompt_tokens_total": 0.0,
        "prompt_seconds_total": 0.0,
    }
    later: dict[str, SqlValue] = {
        "tokens_predicted_seconds_total": 10.0,
        "prompt_tokens_total": 50.0,
        "prompt_seconds_total": 1.0,
    }
    for model in ("m", "other"):
        insert_tokens(database, (NOON, 0), model=model, **counters)
        insert_tokens(database, (NOON + 5, 300), model=model, **later)
    insert(
        database,
        REQUESTS,
        *(
            request(
                NOON + 1, generated_tokens=101, generation_ms=2000.0 + n, processed_tokens=10, prompt_ms=20.0
            )
            for n in (-500.0, 500.0)
        ),
        request(NOON + 2, outcome="cancelled", generation_ms=1e6),
        request(NOON + 2, time_source="unknown", generation_ms=1e6),
        request(NOON + 2, generated_tokens=1, generation_ms=0.0, processed_tokens=0, prompt_ms=1e6),
        request(NOON + 3 * 86_400, generation_ms=1e6),
    )
    upgrade_rows(database)
    names = "model, generated_tokens_per_second, prompt_tokens_per_second, speed_source"
    assert [tuple(row.values()) for row in database.query(f"SELECT {names} FROM {view} ORDER BY model")] == [
        ("m", 50, 500, "requests"),
        ("other", 30, 50, "counters"),
    ]


def test_columns_of_counters_that_a_build_lacks_are_null(database: Database) -> None:
    insert_tokens(database, (NOON, 0), (NOON + 5, 90))
    upgrade_rows(database)
    (row,) = database.query("SELECT * FROM tokens_by_hour")
    for name in ("cached_tokens", "cache_hit_share", "acceptance_share", "generated_tokens_per_second"):
        assert row[name] is None


def test_an_hour_without_a_request_has_no_speed_and_no_share(database: Database) -> None:
    insert_tokens(
        database, (NOON, 5), (NOON + 5, 5), tokens_predicted_seconds_total=1.0, prompt_tokens_total=3.0,
        prompt_tokens_cached_total=3.0,
    )  # fmt: skip
    upgrade_rows(database)
    (row,) = database.query("SELECT * FROM tokens_by_hour")
    assert (row["generated_tokens"], row["generated_tokens_per_second"], row["cache_hit_share"]) == (
        0,
        None,
        None,
    )


def test_speeds_contain_the_quantization(database: Database) -> None:
    insert(database, MODELS, {"id": "i", "name": "m", "quantization": "Q4_K_M", "file_size": 2 * 2**20})
    insert_tokens(database, (NOON, 5), model_id="i")
    insert_tokens(database, (NOON + 5, 50), model_id="i", predicted_tokens_per_second=30.5)
    insert_tokens(database, (NOON + 10, 60), model="unknown", prompt_tokens_per_second=400.0)
    assert ask(
        database,
        "SELECT timestamp, model, quantization, file_size_mb, generated_tokens_per_second FROM speeds ORDER BY timestamp",
    ) == [
        (NOON + 5, "m", "Q4_K_M", 2, 30.5),
        (NOON + 10, "unknown", None, None, None),
    ]


def test_busy_share_counts_the_samples_in_which_the_server_answered(database: Database) -> None:
    for second, requests in enumerate((0, 1, 2, 0)):
        insert(database, METRICS, {"timestamp": NOON + second, "active_models": 1})
        insert_tokens(database, (NOON + second, 0), requests_processing=float(requests))
    insert(database, METRICS, {"timestamp": NOON + 4, "active_models": None})  # it did not answer
    insert(database, METRICS, {"timestamp": NOON + 5, "active_models": 0})  # on some builds no row while idle
    assert ask(
        database, "SELECT timestamp, model, busy_share, requests_processing, samples FROM busy_by_hour"
    ) == [(NOON, "m", 2 / 5, 3 / 5, 5)]


def gpu(
    timestamp: int, number: int, energy: float | None = None, used: float | None = None, **more: SqlValue
) -> dict[str, SqlValue]:
    known: dict[str, SqlValue] = {"memory_used_mb": 1000.0, "power_watts": 100.0, "gpu_usage": 50.0}
    return {
        "timestamp": timestamp,
        "gpu_index": number,
        "uuid": f"GPU-{number}",
        "energy_joules": energy,
        "energy_used_joules": used,
        **known,
        **more,
    }


def test_values_of_gpus_are_summed_and_compared_with_the_tokens(database: Database) -> None:
    insert(
        database,
        GPU_METRICS,
        gpu(NOON - 5, 0, 1000), gpu(NOON - 5, 1, 50),
        gpu(NOON, 0, 1600, 600), gpu(NOON, 1, 250, 200),
        gpu(NOON + 5, 0, 2500, 900, power_watts=300.0), gpu(NOON + 5, 1, 100, 100, memory_used_mb=3000.0),
    )  # fmt: skip
    insert_tokens(database, (NOON - 5, 0), (NOON + 5, 500))
    upgrade_rows(database)
    (row,) = database.query(f"SELECT * FROM gpu_by_hour WHERE timestamp = {NOON}")
    assert (row["gpus"], row["gpu_usage"], row["memory_used_mb"], row["power_watts"]) == (2, 50, 3000, 300)
    assert row["energy_joules"] == (600 + 900) + (
        200 + 100
    )  # the counter of the second GPU fell to 0: its driver was loaded again
    assert row["generated_tokens"] == 500
    assert row["watt_hours_per_million_tokens"] == pytest.approx(1800 / 3600 / 500 * 1_000_000)


def test_energy_is_unknown_if_a_gpu_does_not_report_it(database: Database) -> None:
    insert(database, GPU_METRICS, gpu(NOON, 0, 1), gpu(NOON, 1), gpu(NOON + 5, 0, 900, 899), gpu(NOON + 5, 1))
    insert_tokens(database, (NOON, 0), (NOON + 5, 500))
    rows = ask(database, "SELECT energy_joules, watt_hours_per_million_tokens, power_watts FROM gpu_by_hour")
    assert rows == [(None, None, 200)]


def event(
    timestamp: int, name: str, before: str | None = None, seconds: float | None = None
) -> dict[str, SqlValue]:
    state = {"woke": "loaded", "evicted": "unloaded", "crashed": "failed"}.get(name, name)
    return {
        "timestamp": timestamp, "model": "m", "model_id": "i", "event": name, "state": state,
        "previous_state": before, "seconds_since_last": seconds,
    }  # fmt: skip


def insert_events(database: Database) -> None:
    insert(database, METRICS, {"timestamp": NOON}, {"timestamp": NOON + 500})
    insert(
        database,
        MODEL_EVENTS,
        event(NOON, "loading"),
        event(NOON + 12, "loaded", "loading", 11.5),
        event(NOON + 100, "sleeping", "loaded", 88),
        event(NOON + 200, "woke", "sleeping", 100),
        event(NOON + 300, "evicted", "loaded", 100),
        event(NOON + 400, "loaded", "loading", 8.5),
    )


def test_a_load_has_its_duration_and_the_time_in_memory_after_it(database: Database) -> None:
    insert_events(database)
    rows = ask(
        database,
        "SELECT timestamp, came_by, load_seconds, left_by, resident_seconds FROM model_loads ORDER BY timestamp",
    )
    assert rows == [
        (NOON + 12, "loaded", 11.5, "sleeping", 88),
        (NOON + 200, "woke", None, "evicted", 100),
        (NOON + 400, "loaded", 8.5, None, 100),
    ]


def test_residency_sums_up_the_loads_of_a_model(database: Database) -> None:
    insert_events(database)
    (row,) = database.query("SELECT * FROM model_residency")
    assert (row["model"], row["timestamp"], row["loads"], row["resident_seconds"]) == (
        "m",
        NOON + 400,
        2,
        288,
    )
    assert (row["mean_load_seconds"], row["longest_load_seconds"]) == (10, 11.5)
    assert (row["sleeps"], row["evictions"], row["crashes"]) == (1, 1, 0)


def test_unused_models_have_their_last_use_and_size(database: Database) -> None:
    now, day = int(time.time()), 86_400
    insert(database, METRICS, {"timestamp": now - 20 * day})
    for name, created in (("asked", 90), ("loaded", 90), ("never", 90), ("new", 3)):
        insert(
            database,
            MODELS,
            {"id": name, "name": name, "file_size": 2**30, "created_at": now - created * day},
        )
    insert_tokens(
        database, (now - 9 * day, 5), model="asked", model_id="asked", predicted_tokens_per_second=1.0
    )
    insert_tokens(database, (now - 2 * day, 5), model="asked", model_id="asked")  # idle
    insert(database, MODEL_EVENTS, event(now - 12 * day, "loaded") | {"model_id": "loaded"})
    rows = ask(database, "SELECT name, round(unused_days, 2), last_used, file_size_mb FROM unused_models")
    assert sorted(rows) == [
        ("asked", 9.0, now - 9 * day, 1024),
        ("loaded", 12.0, now - 12 * day, 1024),
        ("never", 20.0, None, 1024),  # no sample is older than that
        ("new", 3.0, None, 1024),
    ]


def test_errors_are_counted_by_hour_and_source(database: Database) -> None:
    for second, level, source in (
        (0, "error", "a"), (1, "critical", "a"), (2, "info", "a"), (3, "warn", "b"), (HOUR, "error", "a"), (9 * HOUR, "info", None),
    ):  # fmt: skip
        insert(database, LOGS, {"level": level, "message": "", "source": source, "timestamp": NOON + second})
    rows = ask(
        database,
        "SELECT timestamp, source, errors, warnings, records FROM errors_by_hour ORDER BY timestamp, source",
    )
    assert rows == [
        (NOON, "a", 2, 0, 3),
        (NOON, "b", 0, 1, 1),
        (NOON + HOUR, "a", 1, 0, 1),
        (NOON + 9 * HOUR, None, 0, 0, 1),
    ]


def gaps_after(database: Database, *pauses: int) -> list[tuple[Any, ...]]:
    timestamp = NOON
    for pause in (0, *pauses):
        timestamp += pause
        insert(database, METRICS, {"timestamp": timestamp})
    return ask(database, "SELECT began, timestamp, seconds, missing_samples FROM gaps ORDER BY timestamp")


def test_a_gap_is_longer_than_the_intervals_around_it(database: Database) -> None:
    assert gaps_after(database, 5, 5, 60, 5, 5) == [(NOON + 10, NOON + 70, 60, 11)]


def test_two_adjacent_gaps_are_both_found(database: Database) -> None:
    assert [row[2] for row in gaps_after(database, 5, 600, 900, 5)] == [600, 900]


def test_a_late_sample_is_no_gap(database: Database) -> None:
    assert gaps_after(database, 1, 1, 2, 1, 3, 1) == []


def test_a_gap_that_ends_with_two_samples_in_a_second_is_found_once(database: Database) -> None:
    assert len(gaps_after(database, 5, 60, 0, 5)) == 1


def test_samples_that_are_always_an_hour_apart_leave_no_gap(database: Database) -> None:
    assert gaps_after(database, HOUR, HOUR, HOUR) == []


def test_now_is_one_row_with_the_current_state(database: Database) -> None:
    now = int(time.time())
    insert(database, METRICS, {"timestamp": now - 65, "uptime": 1}, {"timestamp": now - 60, "uptime": 90.0})
    insert(database, HOST_METRICS, {"timestamp": now - 60, "cpu_usage": 12.0, "disk_free_mb": 99.0})
    insert(database, GPU_METRICS, gpu(now - 60, 0), gpu(now - 60, 1, temperature_celsius=61.0))
    for name, status in (("b", "loaded"), ("a", "loaded"), ("c", "unloaded")):
        insert(database, MODELS, {"id": name, "name": name, "status": status})
    insert_tokens(database, (now - 65, 10), model="a", model_id="a", predicted_tokens_per_second=33.333)
    insert_tokens(database, (now - 60, 25), model="a", model_id="a", requests_processing=2.0)
    for level, age in (("error", 600), ("critical", 500), ("warn", 400), ("error", 7200), ("critical", 7200)):
        insert(database, LOGS, {"level": level, "message": "", "timestamp": now - age})
    upgrade_rows(database)
    (row,) = database.query("SELECT * FROM now")
    assert row["age_seconds"] in range(60, 70)
    assert (row["timestamp"], row["server_uptime_seconds"]) == (now - 60, 90)
    assert (row["loaded_models"], row["last_tokens_per_second"]) == ("a, b", "a 33.3")
    assert (row["requests_processing"], row["requests_deferred"]) == (2, None)
    assert (row["generated_tokens_last_hour"], row["errors_last_hour"]) == (15, 2)
    assert (row["cpu_usage"], row["disk_free_mb"], row["memory_usage"]) == (12, 99, None)
    assert (row["gpu_memory_used_mb"], row["gpu_power_watts"], row["gpu_temperature_celsius"]) == (
        2000,
        200,
        61,
    )


def test_now_has_no_row_before_the_first_sample(database: Database) -> None:
    assert ask(database, "SELECT * FROM now") == []


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_a_view_over_an_empty_database_has_no_row(empty: Database, view: View) -> None:
    assert ask(empty, f"SELECT * FROM {view.name}") == []


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_a_view_has_the_columns_that_it_declares(empty: Database, view: View) -> None:
    columns = [row["name"] for row in empty.query(f"PRAGMA table_info({view.name})")]
    assert columns == [column.name for column in view.columns]


def plan(database: Database, question: str) -> list[str]:
    return [row["detail"] for row in database.query(f"EXPLAIN QUERY PLAN {question}")]


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_the_range_of_a_day_scans_no_time_series(empty: Database, view: View) -> None:
    names = {column.name for column in view.columns}
    bounds = f" WHERE timestamp >= {NOON} AND timestamp < {NOON + 24 * HOUR}" if "timestamp" in names else ""
    steps = plan(empty, f"SELECT * FROM {view.name}{bounds}")
    assert any(step.startswith("SEARCH") and "INDEX" in step for step in steps)
    scanned = {word for step in steps if step.startswith("SCAN") for word in step.split()}
    assert not scanned & {*TIME_SERIES, *ALIASES}, steps


def test_a_query_of_one_day_reads_only_that_day(database: Database) -> None:
    """Counted in instructions of SQLite: a query of one day costs the same, however many days are stored."""

    def steps(question: str) -> int:
        count = 0

        def tick() -> int:
            nonlocal count
            count += 1
            return 0

        database._connection.set_progress_handler(tick, 100)
        database.query(question)
        database._connection.set_progress_handler(None, 0)
        return count

    def insert_day(day: int) -> None:
        times = range(NOON + day * 86_400, NOON + (day + 1) * 86_400, 60)
        insert(database, METRICS, *({"timestamp": t, "active_models": 1} for t in times))
        insert(database, GPU_METRICS, *(gpu(t, 0, t) for t in times))
        insert(database, LOGS, *({"level": "error", "message": "", "timestamp": t} for t in times))
        insert(database, REQUESTS, *(request(t) for t in times))
        insert(
            database,
            LLAMA_METRICS,
            *(
                {
                    "timestamp": t,
                    "model": "m",
                    "tokens_predicted_total": t,
                    "predicted_tokens_per_second": 1.0,
                    "run_id": 1,
                }
                for t in times
            ),
        )

    insert_day(0)
    timed = [view.name for view in VIEWS if any(column.name == "timestamp" for column in view.columns)]
    questions = {
        name: f"SELECT * FROM {name} WHERE timestamp >= {NOON} AND timestamp < {NOON + 86_400}"
        for name in timed
        if name
        not in (
            "now",
            "model_residency",
            "model_loads",
        )  # these read only the newest sample, or one row per load
    }
    alone = {name: steps(question) for name, question in questions.items()}
    for day in (*range(-4, 0), *range(1, 5)):
        insert_day(day)
    for name, question in questions.items():
        assert steps(question) < 2 * alone[name], (
            name
        )  # nine times the rows: finding the hours costs a little


@pytest.mark.parametrize("view", ["errors_by_hour", "busy_by_hour", "tokens_by_hour", "gpu_by_hour"])
def test_finding_the_hours_of_a_day_does_not_check_every_hour_of_other_years(
    database: Database, view: str
) -> None:
    hours = [NOON + number * HOUR for number in range(-10_000, 10_000)]
    insert(database, LOGS, *({"level": "error", "message": "", "timestamp": t} for t in hours))
    insert(
        database,
        LLAMA_METRICS,
        *({"timestamp": t, "model": "m", "tokens_predicted_total": 1, "run_id": 1} for t in hours),
    )
    insert(database, GPU_METRICS, *(gpu(t, 0, 1.0) for t in hours))
    steps = 0

    def tick() -> int:
        nonlocal steps
        steps += 1
        return 0

    database._connection.set_progress_handler(tick, 1000)
    rows = database.query(
        f"SELECT * FROM {view} WHERE timestamp >= {NOON} AND timestamp < {NOON + 24 * HOUR}"
    )
    database._connection.set_progress_handler(None, 0)
    assert len(rows) == 24
    assert steps < 15 * len(hours) / 1000  # checking each would need 39


def test_the_last_use_of_a_model_is_found_by_the_index_of_finished_requests(empty: Database) -> None:
    assert any("idx_llama_metrics_finished" in step for step in plan(empty, "SELECT * FROM unused_models"))


def test_a_user_with_read_permission_can_query_every_view(empty: Database) -> None:
    with closing(connect_read_only(empty.path)) as reader:
        for view in VIEWS:
            assert reader.execute(f"SELECT * FROM {view.name}").fetchall() == []


@pytest.mark.slow
@pytest.mark.namespaces
@pytest.mark.timeout(1200)
def test_the_tokens_of_a_real_router_add_up_across_evictions_and_restarts(
    tmp_path: Path, tiny_model: Path, llama_server_program: Path
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    for name in ("alpha", "beta"):
        shutil.copy(tiny_model, models / f"{name}.gguf")

    def work(router: LlamaRouter, model: str, requests: int) -> None:
        for _ in range(requests):
            router.complete(model, tokens=240)
        counted = f"model = '{model}' AND tokens_predicted_total = {240 * requests}"
        collector.wait_for(f"SELECT * FROM llama_metrics WHERE {counted} AND timestamp >= {time.time() - 20}")

    router = LlamaRouter(llama_server_program, models, tmp_path / "router.log", ("--models-max", "1"))
    with Collector(
        tmp_path, f'[sampling]\ninterval = 1\n[llama_server]\nurl = "{router.url}"\n'
    ) as collector:
        collector.wait_for("SELECT * FROM metrics")
        with router:
            work(router, "alpha", 8)
            work(router, "beta", 5)  # which evicts the first
            work(router, "alpha", 12)
        with router:
            work(router, "alpha", 15)  # more than in the previous run
        assert collector.stop() == 0
    rows = collector.query("SELECT model, sum(generated_tokens) AS tokens FROM tokens_by_hour GROUP BY model")
    assert {row["model"]: row["tokens"] for row in rows} == {"alpha": 35 * 240, "beta": 5 * 240}
    loads = collector.query("SELECT model, left_by FROM model_loads ORDER BY timestamp")
    assert [row["model"] for row in loads] == ["alpha", "beta", "alpha", "alpha"]
    assert [row["left_by"] for row in loads][:2] == ["evicted", "evicted"]


# Requests


def request(timestamp: int, **values: Any) -> dict[str, Any]:
    """Return a finished request that ran alone."""
    return {
        "timestamp": timestamp,
        "model": "m",
        "task": timestamp,
        "time_source": "stamp",
        "outcome": "finished",
        "prompt_tokens": 3000,
        "processed_tokens": 2000,
        "cached_tokens": 1000,
        "generated_tokens": 101,
        "context_tokens": 3100,
        "prompt_ms": 1000.0,
        "generation_ms": 10_000.0,
        "total_ms": 11_000.0,
        "other_requests": 0,
    } | values


def test_requests_by_hour_counts_outcomes_and_ranks_durations(database: Database) -> None:
    hour = NOON
    insert(database, REQUESTS, *(request(hour + n, total_ms=float(n)) for n in range(1, 101)))
    insert(database, REQUESTS, request(hour + 5, outcome="cancelled", total_ms=None, generated_tokens=None))
    insert(database, REQUESTS, request(hour + 6, outcome="error", total_ms=99_999.0, error="x"))
    insert(database, REQUESTS, request(hour + 7, model=None), request(hour + 3600, model="n", total_ms=None))
    rows = database.query("SELECT * FROM requests_by_hour ORDER BY timestamp, model")
    assert [(row["timestamp"], row["model"], row["requests"]) for row in rows] == [
        (hour, None, 1),
        (hour, "m", 102),
        (hour + 3600, "n", 1),
    ]
    row = rows[1]
    assert (row["finished"], row["cancelled"], row["error"], row["lost"]) == (100, 1, 1, 0)
    assert (row["total_p50_ms"], row["total_p95_ms"], row["total_p99_ms"]) == (50, 95, 99)
    assert (row["first_token_p99_ms"], row["queue_p50_ms"]) == (1000, None)
    assert row["generated_tokens"] == 101 * 101
    assert (rows[2]["total_p50_ms"], rows[2]["first_token_p50_ms"]) == (None, 1000)


def test_slow_failed_and_uncached_requests_have_their_reason(database: Database) -> None:
    insert(
        database,
        REQUESTS,
        request(NOON + 1),
        request(NOON + 2, prompt_ms=9000.0, generation_ms=2000.0, cached_tokens=2900, processed_tokens=100),
        request(NOON + 3, prompt_ms=9000.0, generation_ms=2000.0),
        request(NOON + 4, other_requests=2),
        request(NOON + 5, queue_ms=60_000.0),
        request(NOON + 6, total_ms=9_000.0, slot_similarity=0.9, slot_kept_share=0.1),
        request(NOON + 7, outcome="error", total_ms=None, error="too long"),
        request(NOON + 8, outcome="server_ended", total_ms=None, run_id=1),
    )
    insert(
        database,
        SERVER_RUNS,
        {
            "server": "s",
            "model": "m",
            "first_seen_at": 1,
            "counters_from_zero": 1,
            "outcome": "crashed",
        },
    )
    slow = database.query("SELECT timestamp, reason FROM slow_requests ORDER BY timestamp")
    assert [(row["timestamp"] - NOON, row["reason"]) for row in slow] == [
        (1, "a long answer"),
        (2, "a long prompt"),
        (3, "a long prompt, not cached"),
        (4, "it ran beside others"),
        (5, "it waited for a slot"),
    ]
    failed = database.query("SELECT error, run_outcome FROM failed_requests ORDER BY timestamp")
    assert [tuple(row.values()) for row in failed] == [("too long", None), (None, "crashed")]
    misses = database.query("SELECT reason FROM cache_misses WHERE timestamp IN (?, ?)", (NOON + 1, NOON + 6))
    assert {row["reason"].partition(",")[0] for row in misses} == {
        "no slot held anything similar",
        "the slot held it and could not use it (sliding window",
    }


def test_now_has_the_speed_of_the_last_request_of_each_model_where_the_log_is_read(
    database: Database,
) -> None:
    now = int(time.time())
    insert(database, METRICS, {"timestamp": now})
    for name in ("a", "b", "c"):
        insert(database, MODELS, {"id": name, "name": name, "status": "loaded"})
    for model, speed in (("a", 9.0), ("b", 7.0)):
        insert_tokens(database, (now, 10), model=model, model_id=model, predicted_tokens_per_second=speed)
    speeds = "SELECT last_tokens_per_second, speed_source FROM now"
    (row,) = database.query(speeds)
    assert tuple(row.values()) == ("a 9.0, b 7.0", "counters")
    last: dict[str, Any] = {"generated_tokens": 11, "generation_ms": 200.0}
    insert(
        database,
        REQUESTS,
        request(now - 9, model="a", generation_ms=1.0),
        request(now - 8, model="a", **last),
    )
    insert(database, REQUESTS, request(now - 2, model="a", outcome="error"))
    (row,) = database.query(speeds)
    assert row["last_tokens_per_second"] == "a 50.0, b 7.0"
    assert set(row["speed_source"].split(",")) == {"requests", "counters"}
    insert(database, REQUESTS, request(now - 5000, model="b", **last), request(now - 50, model="c", **last))
    (row,) = database.query(speeds)
    assert row["last_tokens_per_second"] == "a 50.0, b 7.0, c 50.0"


def test_the_speed_of_a_model_is_the_median_of_requests_that_ran_alone(database: Database) -> None:
    speeds = [request(NOON + n, generation_ms=100_000.0 / n) for n in range(1, 6)]  # n tokens per second
    insert(database, REQUESTS, *speeds, request(NOON + 9, other_requests=1, generation_ms=1e6))
    insert(database, REQUESTS, request(NOON + 10, generated_tokens=1, generation_ms=0.0))
    insert(database, REQUESTS, request(NOON + 11, context_tokens=100_000, run_id=1))
    insert(
        database,
        SERVER_RUNS,
        {"server": "s", "model": "m", "first_seen_at": 1, "counters_from_zero": 1, "build": 11434},
    )
    rows = database.query(
        "SELECT build, context_up_to, requests, tokens_per_second, prompt_tokens_per_second FROM model_speeds "
        "ORDER BY context_up_to"
    )
    assert [tuple(row.values()) for row in rows] == [
        (None, 4096, 5, pytest.approx(3), 2000),
        (11434, 262_144, 1, 10, 2000),
    ]
