"""The collector beside a real router over several models: it records each one's events and disturbs none.

Slow: the first run builds two versions of llama-server from source.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.collector import Collector
from tests.support.llama_build import CURRENT, OLD, llama_server_program
from tests.support.llama_router import LlamaRouter

pytestmark = [pytest.mark.slow, pytest.mark.namespaces, pytest.mark.timeout(1200)]

SLEEP_SECONDS = 4


@pytest.fixture(scope="module", params=[CURRENT, OLD], ids=["current", "before b10499"])
def program(request: pytest.FixtureRequest) -> Path:
    return llama_server_program(request.param)


@pytest.fixture
def models(tmp_path: Path, tiny_model: Path) -> Path:
    directory = tmp_path / "models"
    directory.mkdir()
    for name in ("alpha", "beta", "gamma"):
        shutil.copy(tiny_model, directory / f"{name}.gguf")
    (directory / "broken.gguf").write_text("this is no model")
    return directory


@contextmanager
def both(
    program: Path, models: Path, tmp_path: Path, *options: str, more: str = ""
) -> Iterator[tuple[LlamaRouter, Collector]]:
    """A router and a collector that watches it, once a second."""
    with LlamaRouter(program, models, tmp_path / "router.log", options) as router:
        settings = f'[sampling]\ninterval = 1\n[llama_server]\nurl = "{router.url}"\n{more}'
        with Collector(tmp_path, settings) as collector:
            collector.wait_for("SELECT * FROM models WHERE name = 'gamma'")
            yield router, collector
            assert collector.stop() == 0


def events(collector: Collector, model: str) -> list[str]:
    rows = collector.query("SELECT model, event FROM model_events ORDER BY id")
    return [row["event"] for row in rows if row["model"] == model]


def status(collector: Collector, name: str) -> str:
    rows: dict[str, Any] = {row["name"]: row["status"] for row in collector.query("SELECT * FROM models")}
    return str(rows[name])


def wait_for_status(collector: Collector, name: str, wanted: str) -> None:
    collector.wait_for(f"SELECT * FROM models WHERE name = '{name}' AND status = '{wanted}'")


def wait_for_ticks(collector: Collector, ticks: int) -> None:
    rows = collector.query("SELECT count(*) AS n FROM metrics")[0]["n"]
    collector.wait_for(f"SELECT count(*) FROM metrics HAVING count(*) > {rows} + {ticks}")


def work(router: LlamaRouter, model: str) -> None:
    """Send enough requests to move the processor time of so small a model."""
    for _ in range(12):
        router.complete(model, tokens=240)


def test_counters_of_each_model_equal_what_its_own_process_says(
    program: Path, models: Path, tmp_path: Path
) -> None:
    with both(program, models, tmp_path) as (router, collector):
        for name in ("alpha", "beta"):
            work(router, name)
        for name in ("alpha", "beta"):
            truth = router.child_counters(name)
            assert truth["tokens_predicted_total"] == 12 * 240
            (row,) = collector.wait_for(
                f"SELECT * FROM llama_metrics WHERE model = '{name}' AND tokens_predicted_total = 2880 LIMIT 1"
            )
            for counter in ("prompt_tokens_total", "n_decode_total", "tokens_predicted_seconds_total"):
                assert row[counter] == truth[counter]
            assert row["memory_used_mb"] > 5
            assert row["cpu_usage"] is not None
            (model,) = collector.query(f"SELECT * FROM models WHERE id = '{row['model_id']}'")
            assert model["model_path"] == str(models / f"{name}.gguf")
        assert collector.wait_for("SELECT * FROM metrics WHERE active_models = 2")
        speeds = collector.query("SELECT predicted_tokens_per_second AS s FROM llama_metrics")
        assert all(row["s"] is None or row["s"] > 0 for row in speeds)


def test_an_idle_model_falls_asleep_on_time_and_stays_asleep(
    program: Path, models: Path, tmp_path: Path
) -> None:
    options = ("--sleep-idle-seconds", str(SLEEP_SECONDS))
    with both(program, models, tmp_path, *options) as (router, collector):
        work(router, "alpha")
        took = router.wait_for_state("alpha", "sleeping", seconds=SLEEP_SECONDS + 10)
        # On old builds one reading after its last request is allowed: an interval, and the time of a tick.
        assert took < SLEEP_SECONDS + 3
        wait_for_status(collector, "alpha", "idle")
        wait_for_ticks(collector, 8)
        assert router.states()["alpha"] == "sleeping"
        assert events(collector, "alpha")[-1] == "sleeping"
        assert (
            collector.query("SELECT active_models FROM metrics ORDER BY id DESC LIMIT 1")[0]["active_models"]
            == 0
        )
        work(router, "alpha")
        collector.wait_for("SELECT * FROM model_events WHERE event = 'woke'")
        wait_for_status(collector, "alpha", "loaded")


def test_sampling_loads_no_model_and_adds_no_line_to_the_log_of_the_router(
    program: Path, models: Path, tmp_path: Path
) -> None:
    with both(program, models, tmp_path) as (router, collector):
        work(router, "alpha")
        collector.wait_for("SELECT * FROM model_events WHERE model = 'alpha' AND event = 'loaded'")
        wait_for_ticks(
            collector, 4
        )  # at each reading, also the last one, old builds print that all slots are idle
        before = router.log.read_bytes()
        wait_for_ticks(collector, 5)
        assert router.log.read_bytes() == before
        assert router.states() == {
            "alpha": "loaded",
            "beta": "unloaded",
            "broken": "unloaded",
            "gamma": "unloaded",
        }


def test_the_order_of_eviction_is_that_of_the_requests(program: Path, models: Path, tmp_path: Path) -> None:
    with both(program, models, tmp_path, "--models-max", "2") as (router, collector):
        for name in ("alpha", "beta"):
            work(router, name)
            collector.wait_for(f"SELECT * FROM model_events WHERE model = '{name}' AND event = 'loaded'")
        wait_for_ticks(collector, 3)  # each is sampled
        router.complete("gamma")
        collector.wait_for("SELECT * FROM model_events WHERE model = 'gamma' AND event = 'loaded'")
        assert router.states() == {
            "alpha": "unloaded",
            "beta": "loaded",
            "broken": "unloaded",
            "gamma": "loaded",
        }
        collector.wait_for("SELECT * FROM model_events WHERE model = 'alpha' AND event = 'evicted'")
        wait_for_status(collector, "alpha", "unloaded")


def test_a_load_that_fails_and_a_process_that_is_killed_are_different_events(
    program: Path, models: Path, tmp_path: Path
) -> None:
    with both(program, models, tmp_path) as (router, collector):
        router.complete("broken")
        collector.wait_for(
            "SELECT * FROM model_events WHERE model = 'broken' AND event = 'failed' AND exit_code = 1"
        )
        wait_for_status(collector, "broken", "error")
        work(router, "alpha")
        collector.wait_for("SELECT * FROM model_events WHERE model = 'alpha' AND event = 'loaded'")
        subprocess.run(["pkill", "-KILL", "-f", "--", f"--port {router.child_port('alpha')}"], check=True)
        collector.wait_for("SELECT * FROM model_events WHERE model = 'alpha' AND event = 'crashed'")
        wait_for_status(collector, "alpha", "error")


def test_what_happens_between_two_samples_is_known_from_the_log_of_the_router(
    program: Path, models: Path, tmp_path: Path
) -> None:
    log = tmp_path / "router.log"
    with LlamaRouter(program, models, log) as router:
        settings = (
            f'[sampling]\ninterval = 5\n[llama_server]\nurl = "{router.url}"\n[logs]\nfiles = ["{log}"]\n'
        )
        with Collector(tmp_path, settings) as collector:
            work(router, "beta")  # so that the server of a model that no sample saw is known
            collector.wait_for("SELECT * FROM model_events WHERE model = 'beta' AND event = 'loaded'")
            moments = []
            for _ in range(2):  # one of them is between two samples
                router.complete("alpha")
                router.unload("alpha")
                router.wait_for_state("alpha", "unloaded")
                moments.append(time.time())
            collector.wait_for(
                "SELECT * FROM model_events WHERE model = 'alpha' AND event = 'unloaded' "
                "AND occurred_at IS NOT NULL LIMIT 1 OFFSET 1",
                90,
            )
            rows = collector.query("SELECT * FROM model_loads WHERE model = 'alpha' ORDER BY timestamp")
            assert [(row["came_by"], row["left_by"]) for row in rows] == [("loaded", "unloaded")] * 2
            assert {row["server"] for row in rows} == {router.url.removeprefix("http://")}
            assert any(row["evidence"] == "log" for row in rows)
            assert all(0 < row["load_seconds"] < 5 and 0 < row["resident_seconds"] < 5 for row in rows)
            ends = collector.query(
                "SELECT occurred_at FROM model_events WHERE model = 'alpha' AND event = 'unloaded' ORDER BY id"
            )
            for row, moment in zip(ends, moments, strict=True):
                assert row["occurred_at"] == pytest.approx(moment, abs=0.5)
            assert collector.stop() == 0


def test_a_model_that_is_loaded_again_starts_a_new_series(
    program: Path, models: Path, tmp_path: Path
) -> None:
    with both(program, models, tmp_path, "--models-max", "1") as (router, collector):
        work(router, "alpha")
        collector.wait_for(
            "SELECT * FROM llama_metrics WHERE model = 'alpha' AND tokens_predicted_total = 2880"
        )
        work(router, "beta")
        collector.wait_for(
            "SELECT * FROM llama_metrics WHERE model = 'beta' AND tokens_predicted_total = 2880"
        )
        for _ in range(6):
            router.complete("alpha", tokens=240)
        (row,) = collector.wait_for(
            "SELECT * FROM llama_metrics WHERE model = 'alpha' AND tokens_predicted_total = 1440 LIMIT 1"
        )
        speeds = collector.query(
            f"SELECT predicted_tokens_per_second AS s FROM llama_metrics WHERE id >= {row['id']} AND model = 'alpha'"
        )
        assert any(
            speed["s"]
            for speed in collector.query("SELECT predicted_tokens_per_second AS s FROM llama_metrics")
        )
        assert all(speed["s"] is None or speed["s"] > 0 for speed in speeds)


def test_when_the_router_ends_every_model_is_unloaded(program: Path, models: Path, tmp_path: Path) -> None:
    with LlamaRouter(program, models, tmp_path / "router.log") as router:
        settings = f'[sampling]\ninterval = 1\n[llama_server]\nurl = "{router.url}"\n'
        collector = Collector(tmp_path, settings).start()
        work(router, "alpha")
        wait_for_status(collector, "alpha", "loaded")
    wait_for_status(collector, "alpha", "unloaded")
    assert events(collector, "alpha")[-1] == "unloaded"
    assert collector.stop() == 0


def test_changes_while_the_collector_was_stopped_are_recorded_at_its_start(
    program: Path, models: Path, tmp_path: Path
) -> None:
    with LlamaRouter(program, models, tmp_path / "router.log", ("--models-max", "1")) as router:
        settings = f'[sampling]\ninterval = 1\n[llama_server]\nurl = "{router.url}"\n'
        with Collector(tmp_path, settings) as collector:
            work(router, "alpha")
            wait_for_status(collector, "alpha", "loaded")
            assert collector.stop() == 0
        router.complete("beta")
        with Collector(tmp_path, settings) as collector:
            wait_for_status(collector, "alpha", "unloaded")
            wait_for_status(collector, "beta", "loaded")
            assert (
                events(collector, "alpha") == ["loaded", "evicted"]
                or events(collector, "alpha")[-1] == "unloaded"
            )
            assert collector.stop() == 0
        assert len(collector.query("SELECT * FROM models")) == 4


@pytest.mark.parametrize("way", ["option", "environment"])
def test_an_api_key_serves_router_and_models(program: Path, models: Path, tmp_path: Path, way: str) -> None:
    """The models' own processes inherit it from the environment and require it too."""
    (tmp_path / "key").write_text("s3cr3t")
    options = ("--api-key", "s3cr3t") if way == "option" else ()
    environment = os.environ | ({"LLAMA_API_KEY": "s3cr3t"} if way == "environment" else {})
    log = tmp_path / "router.log"
    with LlamaRouter(program, models, log, options, api_key="s3cr3t", environment=environment) as router:
        settings = f'[sampling]\ninterval = 1\n[llama_server]\nurl = "{router.url}"\napi_key_file = "{tmp_path}/key"\n'
        with Collector(tmp_path, settings) as collector:
            collector.wait_for("SELECT * FROM models WHERE name = 'gamma'")
            work(router, "alpha")
            collector.wait_for("SELECT * FROM llama_metrics WHERE tokens_predicted_total = 2880")
            assert collector.stop() == 0
    assert "s3cr3t" not in collector.output + collector.database.read_bytes().decode("latin-1")


def test_a_model_of_a_preset_has_the_row_of_its_file(program: Path, models: Path, tmp_path: Path) -> None:
    presets = tmp_path / "presets.ini"
    presets.write_text(f"[the boss]\nmodel = {models / 'alpha.gguf'}\nctx-size = 256\n")
    with both(program, models, tmp_path, "--models-preset", str(presets)) as (router, collector):
        work(router, "the boss")
        (row,) = collector.wait_for("SELECT * FROM llama_metrics WHERE tokens_predicted_total = 2880")
        assert row["model"] == "the boss"
        (model,) = collector.query(f"SELECT * FROM models WHERE id = '{row['model_id']}'")
        assert model["model_path"] == str(models / "alpha.gguf")


def test_models_whose_names_have_spaces_quotes_or_other_scripts_have_rows_of_their_own(
    program: Path, tmp_path: Path, tiny_model: Path
) -> None:
    directory = tmp_path / "models"
    directory.mkdir()
    names = ["two words", "quote'\"s", "日本語"]
    for name in names:
        shutil.copy(tiny_model, directory / f"{name}.gguf")
    shutil.copy(tiny_model, directory / "gamma.gguf")
    with both(program, directory, tmp_path) as (router, collector):
        for name in names:
            work(router, name)
            quoted = name.replace("'", "''")
            (row,) = collector.wait_for(
                f"SELECT m.name FROM llama_metrics l JOIN models m ON m.id = l.model_id WHERE l.model = '{quoted}' LIMIT 1"
            )
            assert row["name"] == name
