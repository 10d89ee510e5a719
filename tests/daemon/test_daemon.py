"""The whole collector as a process, with real llama-servers."""

import os
import signal
import socket
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.collector import Collector
from tests.support.llama_server import LlamaServer, free_port, process_name
from tests.support.nvml_stub import NvmlStub

FAST = "[sampling]\ninterval = 1\n"
NO_SERVER = '[llama_server]\nurl = ""\n'


def settings_for(url: str, more: str = "", port: int | None = None) -> str:
    name = process_name(port or urlsplit(url).port or 0)
    return f'{FAST}[llama_server]\nurl = "{url}"\nprocess_name = "{name}"\n{more}'


def test_the_first_row_is_committed_within_seconds_even_at_the_longest_interval(tmp_path: Path) -> None:
    settings = "[sampling]\ninterval = 3600\n" + NO_SERVER
    before = int(time.time())
    with Collector(tmp_path, settings) as collector:
        (row,) = collector.wait_for("SELECT * FROM metrics")
        assert before <= row["timestamp"] <= time.time()
        assert collector.query("SELECT count(*) AS n FROM host_metrics") == [{"n": 1}]


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_commits_what_waits_and_exits_0_at_once(tmp_path: Path, ending: signal.Signals) -> None:
    settings = (
        f'[database]\npath = "{tmp_path}/data/llama-dashboard.db"\nflush_interval = 3600\n{FAST}{NO_SERVER}'
    )
    with Collector(tmp_path, settings) as collector:
        collector.wait_for("SELECT * FROM metrics")
        time.sleep(2.5)  # more samples, which wait in memory
        assert len(collector.query("SELECT * FROM metrics")) == 1
        started = time.monotonic()
        assert collector.stop(ending) == 0
        assert time.monotonic() - started < 10, "it waited for something: 0.01 s is usual"
    assert len(collector.query("SELECT * FROM metrics")) > 1
    assert [
        row["message"] for row in collector.query("SELECT message FROM logs ORDER BY id DESC LIMIT 1")
    ] == ["collector: stopped"]


def test_a_kill_loses_no_committed_row_and_the_next_start_continues(tmp_path: Path) -> None:
    settings = FAST + NO_SERVER
    with Collector(tmp_path, settings) as collector:
        committed = collector.wait_for("SELECT * FROM metrics WHERE id >= 2")[-1]["id"]
        collector.stop(signal.SIGKILL)
    with Collector(tmp_path, settings) as collector:
        collector.wait_for(f"SELECT * FROM metrics WHERE id > {committed}")
        assert collector.stop() == 0
    ids = [row["id"] for row in collector.query("SELECT id FROM metrics ORDER BY id")]
    assert ids == list(range(1, len(ids) + 1))
    assert collector.query("PRAGMA integrity_check") == [{"integrity_check": "ok"}]
    assert {file.name for file in collector.database.parent.iterdir()} == {
        "llama-dashboard.db",
        "llama-dashboard.db.lock",
    }


READY = "SELECT * FROM metrics WHERE active_models = 1"
TOKENS = 240


def generate(server: LlamaServer) -> None:
    """Send a request that uses measurable processor time: some builds are only read when they are not idle."""
    server.complete(tokens=TOKENS)


def test_counters_of_a_real_server_under_load_are_stored(tmp_path: Path, tiny_model: Path) -> None:
    with LlamaServer(tiny_model) as server, Collector(tmp_path, settings_for(server.url)) as collector:
        collector.wait_for(READY)
        for _ in range(3):
            generate(server)
        counters = server.counters()
        assert counters["tokens_predicted_total"] == 3 * TOKENS
        (row,) = collector.wait_for(
            f"SELECT * FROM llama_metrics WHERE tokens_predicted_total = {3 * TOKENS} LIMIT 1"
        )
        for name in (
            "prompt_tokens_total",
            "tokens_predicted_seconds_total",
            "n_decode_total",
            "n_tokens_max",
        ):
            assert row[name] == counters[name]
        assert row["model"] == "tiny"
        assert row["requests_processing"] == 0
        assert row["memory_used_mb"] > 10
        assert 0 <= row["uptime_seconds"] < 60
        (model,) = collector.query(f"SELECT * FROM models WHERE id = '{row['model_id']}'")
        assert (model["name"], model["status"], model["model_path"]) == ("tiny", "loaded", str(tiny_model))
        (snapshot,) = collector.wait_for(f"{READY} AND cpu_usage > 0 LIMIT 1")
        assert 0 < snapshot["uptime"] < 60
        assert 0 < snapshot["memory_usage"] < 50


@pytest.mark.slow
def test_a_speed_is_the_true_speed_of_the_requests_that_finished(tmp_path: Path, tiny_model: Path) -> None:
    with LlamaServer(tiny_model) as server, Collector(tmp_path, settings_for(server.url)) as collector:
        collector.wait_for(READY)
        generate(server)
        collector.wait_for(f"SELECT * FROM llama_metrics WHERE tokens_predicted_total = {TOKENS}")
        before = server.counters()
        generate(server)
        truth = server.counters()
        second = f"FROM llama_metrics WHERE tokens_predicted_total = {2 * TOKENS}"
        (row,) = collector.wait_for(f"SELECT * {second} AND predicted_tokens_per_second IS NOT NULL")
        seconds = truth["tokens_predicted_seconds_total"] - before["tokens_predicted_seconds_total"]
        assert row["predicted_tokens_per_second"] == pytest.approx((TOKENS - 1) / seconds, rel=1e-3)
        collector.wait_for(f"SELECT * FROM metrics WHERE timestamp > {row['timestamp']} + 2")
        assert collector.query(f"SELECT count(predicted_tokens_per_second) AS n {second}") == [{"n": 1}]


def test_down_and_up_are_logged_once_each(tmp_path: Path, tiny_model: Path) -> None:
    port = free_port()
    with Collector(tmp_path, settings_for(f"http://127.0.0.1:{port}")) as collector:
        (down,) = collector.wait_for("SELECT * FROM logs WHERE message LIKE 'llama_server: down%'")
        assert "Start llama-server there, or change [llama_server] url" in down["message"]
        assert (down["source"], down["level"]) == ("collector", "warn")
        assert collector.wait_for("SELECT * FROM metrics")[0]["active_models"] == 0
        assert collector.query("SELECT * FROM llama_metrics") == []
        with LlamaServer(tiny_model, port=port) as server:
            collector.wait_for(READY)
            server.kill()
            collector.wait_for("SELECT * FROM models WHERE name = 'tiny' AND status = 'unloaded'")
        collector.wait_for(
            "SELECT * FROM metrics WHERE uptime = 0 AND timestamp > (SELECT max(timestamp) FROM model_events)"
        )
        assert collector.stop() == 0
    messages = [
        row["message"]
        for row in collector.query("SELECT message FROM logs WHERE message LIKE 'llama_server%'")
    ]
    states = [message.split(":")[1].strip() for message in messages]
    assert [state for state in states if state != "loading"] == ["down", "up", "down"]
    events = [row["event"] for row in collector.query("SELECT event FROM model_events ORDER BY id")]
    assert [event for event in events if event != "loading"] == ["loaded", "unloaded"]


@pytest.mark.usefixtures("foreign_llama_server")
def test_a_restarted_server_starts_a_new_series(tmp_path: Path, tiny_model: Path) -> None:
    port = free_port()
    with LlamaServer(tiny_model, port=port) as server:
        with Collector(tmp_path, settings_for(server.url)) as collector:
            collector.wait_for(READY)
            generate(server)
            generate(server)
            collector.wait_for(f"SELECT * FROM llama_metrics WHERE tokens_predicted_total = {2 * TOKENS}")
            server.kill()
            (last,) = collector.query("SELECT max(id) AS id FROM llama_metrics")
            with LlamaServer(tiny_model, port=port) as again:
                generate(again)
                truth = again.counters()
                (row,) = collector.wait_for(
                    f"SELECT * FROM llama_metrics WHERE tokens_predicted_total = {TOKENS} "
                    f"AND predicted_tokens_per_second IS NOT NULL AND id > {last['id']}"
                )
            expected = (truth["tokens_predicted_total"] - 1) / truth["tokens_predicted_seconds_total"]
            assert row["predicted_tokens_per_second"] == pytest.approx(expected, rel=1e-3)
    assert collector.query("SELECT * FROM llama_metrics WHERE predicted_tokens_per_second < 0") == []


@pytest.mark.slow
def test_a_model_that_sleeps_is_idle_and_stays_asleep(tmp_path: Path, tiny_model: Path) -> None:
    options = ["--metrics", "--sleep-idle-seconds", "3"]
    with (
        LlamaServer(tiny_model, options) as server,
        Collector(tmp_path, settings_for(server.url)) as collector,
    ):
        collector.wait_for(READY)
        generate(server)
        collector.wait_for("SELECT * FROM models WHERE status = 'idle'")
        (asleep,) = collector.wait_for("SELECT * FROM model_events WHERE event = 'sleeping'")
        collector.wait_for(
            f"SELECT * FROM metrics WHERE active_models = 0 AND timestamp > {asleep['timestamp']} + 3"
        )
        assert collector.query("SELECT * FROM model_events WHERE event = 'woke'") == []
        generate(server)
        collector.wait_for("SELECT * FROM model_events WHERE event = 'woke'")


@pytest.mark.slow
def test_a_server_that_accepts_requests_and_never_answers_does_not_delay_the_samples(
    tmp_path: Path,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Collector(tmp_path, settings_for(url)) as collector:
            collector.wait_for("SELECT * FROM metrics WHERE id >= 10")
            rows = collector.query("SELECT timestamp, active_models FROM metrics ORDER BY id LIMIT 10")
            assert collector.query("SELECT state FROM collector_health WHERE name = 'llama_server'") == [
                {"state": "busy"}
            ]
            assert collector.stop() == 0
    timestamps = [row["timestamp"] for row in rows]
    assert timestamps == list(range(timestamps[0], timestamps[0] + 10))
    assert {row["active_models"] for row in rows} == {None}


def test_a_second_collector_on_the_same_database_exits_1_and_names_the_process_that_uses_it(
    tmp_path: Path,
) -> None:
    with Collector(tmp_path, NO_SERVER) as collector:
        collector.wait_for("SELECT * FROM metrics")
        assert collector.process
        second = collector.call("run")
        assert second.returncode == 1
        assert f"another collector (process {collector.process.pid})" in second.stderr


@pytest.mark.slow
def test_a_lock_of_another_program_delays_the_rows_and_loses_none(tmp_path: Path) -> None:
    with Collector(tmp_path, FAST + NO_SERVER) as collector:
        collector.wait_for("SELECT * FROM metrics")
        with closing(sqlite3.connect(collector.database, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            time.sleep(3.5)
            other.execute("ROLLBACK")
        collector.wait_for("SELECT * FROM metrics WHERE id >= 6")
        timestamps = [
            row["timestamp"] for row in collector.query("SELECT timestamp FROM metrics ORDER BY id")
        ]
        assert timestamps == list(range(timestamps[0], timestamps[0] + len(timestamps)))
        messages = [row["message"] for row in collector.query("SELECT message FROM logs")]
        assert sum(message.startswith("flush: waiting") for message in messages) == 1
        assert messages.count("flush: ok") == 1  # other jobs may have found the lock as well


def test_a_process_of_that_name_is_measured_even_if_nothing_listens_at_the_url(
    tmp_path: Path, tiny_model: Path
) -> None:
    with LlamaServer(tiny_model) as server:
        with Collector(
            tmp_path, settings_for(f"http://127.0.0.1:{free_port()}", port=server.port)
        ) as collector:
            collector.wait_for("SELECT * FROM metrics")
            generate(server)
            (row,) = collector.wait_for("SELECT * FROM metrics WHERE cpu_usage > 0 LIMIT 1")
            assert row["uptime"] > 0
            assert row["memory_usage"] > 0
            assert row["active_models"] == 0


@pytest.mark.parametrize(
    ("options", "prefix", "name"),
    [
        (["--metrics", "--api-key", "secret-1"], "", "tiny"),
        (["--metrics", "--api-prefix", "/llama"], "/llama", "tiny"),
        (["--metrics", "--api-prefix", "/llama", "--api-key", "secret-1"], "/llama", "tiny"),
        (["--metrics", "--alias", "my model/é'\""], "", "my model/é'\""),
    ],
    ids=["key", "prefix", "key and prefix", "odd alias"],
)
def test_an_api_key_a_path_prefix_and_odd_model_names_work(
    tmp_path: Path, tiny_model: Path, options: list[str], prefix: str, name: str
) -> None:
    key = "secret-1" if "--api-key" in options else None
    (tmp_path / "key").write_text("secret-1\n")
    with LlamaServer(tiny_model, options, prefix=prefix, api_key=key) as server:
        settings = settings_for(server.url, f'api_key_file = "{tmp_path}/key"\n')
        with Collector(tmp_path, settings) as collector:
            collector.wait_for(READY)
            generate(server)
            assert collector.wait_for("SELECT * FROM llama_metrics LIMIT 1")[0]["model"] == name
            assert collector.stop() == 0
    assert "secret-1" not in collector.output + collector.database.read_bytes().decode("latin-1")


def test_a_unix_socket_is_read(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "llama.sock"
    options = ["--metrics", "--host", str(path)]
    with (
        LlamaServer(tiny_model, options, unix_socket=path) as server,
        Collector(tmp_path, settings_for(f"unix://{path}", port=server.port)) as collector,
    ):
        collector.wait_for(READY)
        generate(server)
        assert collector.wait_for("SELECT * FROM llama_metrics LIMIT 1")[0]["memory_used_mb"] > 1


def test_for_a_server_without_metrics_the_missing_flag_is_logged(tmp_path: Path, tiny_model: Path) -> None:
    with LlamaServer(tiny_model, []) as server, Collector(tmp_path, settings_for(server.url)) as collector:
        collector.wait_for(READY)
        generate(server)
        (row,) = collector.wait_for("SELECT * FROM logs WHERE message LIKE 'llama_server: metrics off%'")
        assert "--metrics" in row["message"]


def test_for_a_missing_key_the_setting_to_change_is_logged(tmp_path: Path, tiny_model: Path) -> None:
    with LlamaServer(tiny_model, ["--metrics", "--api-key", "s3cr3t"]) as server:
        with Collector(tmp_path, settings_for(server.url)) as collector:
            (row,) = collector.wait_for("SELECT * FROM logs WHERE message LIKE 'llama_server: needs key%'")
            assert "[llama_server] api_key_file" in row["message"]
            assert collector.wait_for("SELECT * FROM metrics")[0]["active_models"] is None


@pytest.mark.slow
def test_with_a_server_that_hangs_a_minute_has_one_row_per_second(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Collector(tmp_path, settings_for(url)) as collector:
            (first,) = collector.wait_for("SELECT min(timestamp) AS second FROM metrics HAVING count(*)")
            end = first["second"] + 60
            collector.wait_for(f"SELECT * FROM metrics WHERE timestamp > {end}", seconds=80)
            rows = collector.query(f"SELECT timestamp FROM metrics WHERE timestamp < {end}")
    assert abs(len(rows) - 60) <= 1
    assert len({row["timestamp"] for row in rows}) == len(rows)


class TestGpu:
    """The real pynvml with a stub of NVIDIA's library."""

    SETTINGS = FAST + NO_SERVER

    def test_two_gpus_have_two_rows_per_sample_and_their_sums(
        self, tmp_path: Path, nvml_stub: NvmlStub
    ) -> None:
        nvml_stub.set_count(2)
        with Collector(tmp_path, self.SETTINGS, os.environ | nvml_stub.environment) as collector:
            (row,) = collector.wait_for("SELECT * FROM metrics WHERE gpu_memory_total > 0 LIMIT 1")
            gpus = collector.query(f"SELECT * FROM gpu_metrics WHERE timestamp = {row['timestamp']}")
        assert [gpu["gpu_index"] for gpu in gpus] == [0, 1]
        assert row["gpu_memory_total"] == sum(gpu["memory_total_mb"] for gpu in gpus) == 2 * 24 * 1024
        assert row["gpu_usage"] == 37

    def test_a_driver_that_disappears_causes_zeros_one_log_line_and_no_rows(
        self, tmp_path: Path, nvml_stub: NvmlStub
    ) -> None:
        with Collector(tmp_path, self.SETTINGS, os.environ | nvml_stub.environment) as collector:
            collector.wait_for("SELECT * FROM gpu_metrics")
            nvml_stub.fail("*", 9)
            collector.wait_for("SELECT * FROM metrics WHERE gpu_memory_total = 0 AND id > 2")
            before = len(collector.query("SELECT * FROM gpu_metrics"))
            collector.wait_for("SELECT * FROM metrics WHERE gpu_memory_total = 0 LIMIT -1 OFFSET 2")
            assert len(collector.query("SELECT * FROM gpu_metrics")) == before
            logged = collector.query("SELECT * FROM logs WHERE message LIKE 'gpu:%'")
        assert len(logged) == 1

    @pytest.mark.slow
    def test_a_call_that_hangs_affects_only_the_gpu_and_recovers_by_itself(
        self, tmp_path: Path, nvml_stub: NvmlStub
    ) -> None:
        with Collector(tmp_path, self.SETTINGS, os.environ | nvml_stub.environment) as collector:
            collector.wait_for("SELECT * FROM gpu_metrics")
            with nvml_stub.hanging("nvmlDeviceGetTemperature") as wait_until_it_hangs:
                wait_until_it_hangs()
                collector.wait_for("SELECT * FROM logs WHERE message LIKE 'gpu: stuck%'")
                rows = collector.query("SELECT * FROM metrics WHERE gpu_memory_total = 0 ORDER BY id")
                seconds = [row["timestamp"] for row in rows]
                assert seconds == list(range(seconds[0], seconds[0] + len(seconds)))
                assert len(seconds) >= 5
            last = rows[-1]["id"]
            collector.wait_for(f"SELECT * FROM metrics WHERE gpu_memory_total > 0 AND id > {last}")
            assert collector.stop() == 0

    def test_a_hanging_call_does_not_delay_the_stop(self, tmp_path: Path, nvml_stub: NvmlStub) -> None:
        with Collector(tmp_path, self.SETTINGS, os.environ | nvml_stub.environment) as collector:
            collector.wait_for("SELECT * FROM gpu_metrics")
            with nvml_stub.hanging("nvmlDeviceGetTemperature") as wait_until_it_hangs:
                wait_until_it_hangs()
                started = time.monotonic()
                assert collector.stop() == 0
                assert time.monotonic() - started < 10

    def test_gpu_memory_of_a_model_is_that_of_its_own_process(
        self, tmp_path: Path, tiny_model: Path, nvml_stub: NvmlStub
    ) -> None:
        environment = os.environ | nvml_stub.environment
        with (
            LlamaServer(tiny_model) as server,
            Collector(tmp_path, settings_for(server.url), environment) as collector,
        ):
            assert server.process
            used = f"{server.process.pid}:{3 * 2**30} 1:{2**30}"
            nvml_stub.answer("nvmlDeviceGetComputeRunningProcesses_v3", used)
            collector.wait_for(READY)
            generate(server)
            (row,) = collector.wait_for(
                "SELECT * FROM llama_metrics WHERE gpu_memory_used_mb IS NOT NULL LIMIT 1"
            )
            assert row["gpu_memory_used_mb"] == 3 * 1024
