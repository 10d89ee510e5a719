"""Which run a sample belongs to, and whether its counters count in full."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.catalog import OWN_TABLES
from collector.database import Database
from collector.parsers.server_answers import ServedModel
from collector.schema import Write
from collector.sources.gpu.source import GpuDetail, GpuIdentity
from collector.sources.llama.local.process import LlamaProcess
from collector.sources.llama.metrics import LLAMA_METRICS
from collector.sources.llama.run_table import HistoryStart
from collector.sources.llama.runs import ObservedProcess, RunAssignment, ServerRuns

MODEL = ServedModel("m", "/models/m.gguf", "loaded", context_size=4096)
BOOT, EARLIER_BOOT = "boot-2", "boot-1"


def process(pid: int, started: float = 100.0, boot_id: str = BOOT, wall: float = 5000.0) -> LlamaProcess:
    arguments = ("llama-server", "--api-key", "secret", "--port", "8080")
    return LlamaProcess(
        pid, wall, None, 0.0, 0, arguments, started_boot_seconds=started, boot_id=boot_id, uptime_seconds=1.0
    )


def observed(tokens: float | None = None, **more: Any) -> ObservedProcess:
    counters = None if tokens is None else (tokens, None, None)
    plain = ObservedProcess(1000, "127.0.0.1:8080", "127.0.0.1:8080", MODEL, None, counters=counters)
    return replace(plain, **more)


class RecordedRuns:
    """Runs over a real database; every changed row is written at once."""

    def __init__(self, database: Database, history: HistoryStart = HistoryStart(BOOT, 50.0, 4000.0)) -> None:  # noqa: B008
        self.database = database
        self._history = history
        self.restart()

    def restart(self) -> None:
        """Read the stored runs again, as a restarted collector does."""
        self.runs = ServerRuns(self.database.query)
        self.runs.load()
        self.runs._history = self._history

    def assign(self, seen: ObservedProcess) -> RunAssignment:
        assignment = self.runs.assign(seen)
        self.write(assignment.changes)
        if seen.counters:
            row: dict[str, Any] = {"timestamp": seen.timestamp, "model": "m", "run_id": assignment.run_id}
            self.write(
                [LLAMA_METRICS.insert(LLAMA_METRICS.row(row | {"tokens_predicted_total": seen.counters[0]}))]
            )
        return assignment

    def write(self, writes: list[Write]) -> None:
        with self.database.transaction() as connection:
            for write in writes:
                connection.executemany(write.statement, write.rows)

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.database.query("SELECT * FROM server_runs ORDER BY id")


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[RecordedRuns]:
    with Database(tmp_path / "x.db", OWN_TABLES) as database:
        yield RecordedRuns(database)


def test_all_samples_of_a_process_belong_to_one_run(recorded: RecordedRuns) -> None:
    first = recorded.assign(observed(5, process=process(7)))
    again = recorded.assign(observed(9, process=process(7)))
    assert first.run_id == again.run_id
    assert (first.counted_from_zero, again.counted_from_zero) == (True, False)
    assert again.changes == []


def test_another_process_is_another_run_even_if_its_counters_are_higher(recorded: RecordedRuns) -> None:
    first = recorded.assign(observed(5, process=process(7)))
    second = recorded.assign(observed(900, process=process(8, 200.0)))
    assert second.run_id > first.run_id
    assert second.counted_from_zero
    assert [row["outcome"] for row in recorded.rows] == ["replaced", None]


def test_a_reused_process_id_belongs_to_another_run(recorded: RecordedRuns) -> None:
    assert (
        recorded.assign(observed(5, process=process(7, 100.0))).run_id
        != recorded.assign(observed(6, process=process(7, 300.0))).run_id
    )


def test_setting_the_clock_changes_no_run(recorded: RecordedRuns) -> None:
    """psutil computes `create_time` from the current wall clock; the start since boot does not depend on it."""
    first = recorded.assign(observed(5, process=process(7, wall=5000.0)))
    for step in (3.0, 3600.0, -86_400.0):
        again = recorded.assign(observed(5, process=process(7, wall=5000.0 + step)))
        assert (again.run_id, again.counted_from_zero) == (first.run_id, False)


def test_the_header_of_metrics_decides_if_the_process_is_not_visible(recorded: RecordedRuns) -> None:
    runs = [
        recorded.assign(observed(tokens, metrics_run=run)).run_id
        for tokens, run in ((5, "1"), (9, "1"), (20, "2"))
    ]
    assert runs[0] == runs[1] != runs[2]


def test_a_server_that_was_restarted_after_the_processes_were_read_counts_once(
    recorded: RecordedRuns,
) -> None:
    """The list still contains the old process, while the new one already answers /metrics."""
    recorded.assign(observed(50, process=process(7), metrics_run="1"))
    stale = recorded.assign(observed(5, process=process(7), metrics_run="2"))
    assert stale.counted_from_zero
    after = recorded.assign(observed(8, process=process(8, 200.0), metrics_run="2"))
    assert (after.run_id, after.counted_from_zero) == (stale.run_id, False)
    assert [row["process_id"] for row in recorded.rows] == [7, 8]


def test_a_restart_of_another_server_begins_no_run_of_a_server_whose_process_is_not_visible(
    recorded: RecordedRuns,
) -> None:
    """The only llama-server process of this machine is assumed to be the server, but may be another one."""
    first = recorded.assign(observed(50, process=process(7), metrics_run="1"))
    again = recorded.assign(observed(60, process=process(8, 200.0), metrics_run="1"))
    assert (again.run_id, again.counted_from_zero) == (first.run_id, False)


@pytest.mark.parametrize("new_collector", [False, True])
def test_a_restart_with_another_model_counts_in_full_if_the_process_is_not_visible(
    recorded: RecordedRuns, *, new_collector: bool
) -> None:
    recorded.assign(observed(50, metrics_run="1"))
    if new_collector:
        recorded.restart()
    other = replace(MODEL, name="other")
    assert recorded.assign(observed(8, model=other, metrics_run="2")).counted_from_zero
    renamed = replace(MODEL, name="renamed")
    assert not recorded.assign(observed(9, model=renamed, metrics_run="2")).counted_from_zero


def test_a_process_that_was_counted_under_another_name_of_its_server_is_not_counted_again(
    recorded: RecordedRuns,
) -> None:
    assert recorded.assign(observed(50, process=process(7), metrics_run="1")).counted_from_zero
    recorded.restart()
    renamed = observed(60, process=process(7), metrics_run="1", server="my-host:8080")
    assert not recorded.assign(renamed).counted_from_zero
    restarted = observed(5, process=process(8, 200.0), metrics_run="2", server="my-host:8080")
    assert recorded.assign(restarted).counted_from_zero


def test_the_run_after_a_restart_with_another_model_does_not_get_the_old_process_id(
    recorded: RecordedRuns,
) -> None:
    recorded.assign(observed(50, process=process(7), metrics_run="1"))
    other = replace(MODEL, name="other")
    assert recorded.assign(observed(5, model=other, process=process(7), metrics_run="2")).counted_from_zero
    recorded.assign(observed(8, model=other, process=process(8, 200.0), metrics_run="2"))
    assert [row["process_id"] for row in recorded.rows] == [7, 8]


def test_a_counter_that_fell_begins_a_run_if_process_and_header_are_not_known(recorded: RecordedRuns) -> None:
    assignments = [recorded.assign(observed(tokens)) for tokens in (5.0, 9.0, 3.0, 4.0)]
    runs = [one.run_id for one in assignments]
    assert runs[0] == runs[1] != runs[2] == runs[3]
    assert [one.counted_from_zero for one in assignments] == [False, False, True, False]


def test_a_new_collector_continues_the_run_of_a_process_that_still_runs(recorded: RecordedRuns) -> None:
    first = recorded.assign(observed(5, process=process(7)))
    recorded.restart()
    again = recorded.assign(observed(9, process=process(7)))
    assert (again.run_id, again.counted_from_zero) == (first.run_id, False)
    assert len(recorded.rows) == 1


def test_a_process_that_started_while_no_collector_ran_counts_in_full(recorded: RecordedRuns) -> None:
    recorded.assign(observed(5, process=process(7)))
    recorded.restart()
    assert recorded.assign(observed(900, process=process(8, 200.0))).counted_from_zero
    assert recorded.rows[0]["outcome"] == "unobserved"
    assert recorded.rows[0]["ended_at"] is None


@pytest.mark.parametrize(
    ("history", "seen", "in_full"),
    [
        (HistoryStart(BOOT, 50.0, 0.0), process(7, 100.0), True),
        (HistoryStart(BOOT, 150.0, 0.0), process(7, 100.0), False),
        (HistoryStart(EARLIER_BOOT, 150.0, 9e9), process(7, 100.0), True),
        (HistoryStart(None, None, 4000.0), process(7, wall=5000.0), True),
        (HistoryStart(None, None, 6000.0), process(7, wall=5000.0), False),
        (HistoryStart(None, None, None), process(7), False),
        # Version 0.1.0 sampled first, and the clock was set since then.
        (HistoryStart(BOOT, 50.0, 9e9, sampled_before=True), process(7, 100.0), True),
        (HistoryStart(BOOT, 150.0, 9e9, sampled_before=True), process(7, 100.0), False),
        (HistoryStart(BOOT, 150.0, 4000.0, sampled_before=True), process(7, 100.0), True),
    ],
)
def test_the_first_run_of_a_model_counts_in_full_if_it_began_after_the_first_collector(
    tmp_path: Path, history: HistoryStart, seen: LlamaProcess, *, in_full: bool
) -> None:
    with Database(tmp_path / "x.db", OWN_TABLES) as database:
        assert RecordedRuns(database, history).assign(observed(5, process=seen)).counted_from_zero == in_full


def test_the_history_begins_with_the_first_run_of_a_collector_even_if_its_row_is_written_late(
    tmp_path: Path,
) -> None:
    with Database(tmp_path / "x.db", OWN_TABLES) as database:
        runs = ServerRuns(database.query)
        assert runs.history_start() == HistoryStart(None, None, None)
        with database.transaction() as connection:
            connection.execute("INSERT INTO collector_runs (version, started_at) VALUES ('0.1.0', 4000)")
        assert runs.history_start() == HistoryStart(None, None, 4000, sampled_before=True)
        with database.transaction() as connection:
            for start in (50.0, 90.0):
                connection.execute(
                    "INSERT INTO collector_runs (version, started_at, boot_id, started_boot_seconds) "
                    "VALUES ('0.2.0', 5000, ?, ?)",
                    (BOOT, start),
                )
        expected = HistoryStart(BOOT, 50.0, 4000, sampled_before=True)
        assert ServerRuns(database.query).history_start() == expected


def test_a_server_that_was_down_in_an_earlier_sample_counts_in_full(recorded: RecordedRuns) -> None:
    assert recorded.assign(observed(70, is_new=True)).counted_from_zero


def test_the_first_metrics_of_a_run_count_in_full_even_if_they_are_read_late(recorded: RecordedRuns) -> None:
    """/metrics of a sleeping model of an old build is not read until the model is used."""
    assert not recorded.assign(observed(process=process(7))).counted_from_zero
    recorded.restart()
    assert recorded.assign(observed(40, process=process(7))).counted_from_zero
    assert not recorded.assign(observed(50, process=process(7))).counted_from_zero


def test_a_run_whose_rows_were_pruned_does_not_count_in_full_again(recorded: RecordedRuns) -> None:
    assert recorded.assign(observed(40, process=process(7))).counted_from_zero
    with recorded.database.transaction() as connection:
        connection.execute("DELETE FROM llama_metrics")
        connection.execute("INSERT INTO metrics (timestamp) VALUES (5000)")  # newer than the run
    recorded.restart()
    assert not recorded.assign(observed(50, process=process(7))).counted_from_zero


def test_a_run_continues_when_its_server_can_be_reached_again(
    recorded: RecordedRuns,
) -> None:
    first = recorded.assign(observed(5, metrics_run="1"))
    recorded.write(recorded.runs.end_others("127.0.0.1:8080", (), 2000))
    assert [(row["outcome"], row["ended_at"]) for row in recorded.rows] == [("ended", 2000)]
    again = recorded.assign(observed(7, metrics_run="1", is_new=True))
    assert (again.run_id, again.counted_from_zero) == (first.run_id, False)
    assert [(row["outcome"], row["ended_at"]) for row in recorded.rows] == [(None, None)]


def test_a_model_that_is_loaded_again_begins_another_run(recorded: RecordedRuns) -> None:
    first = recorded.assign(observed(5))
    recorded.write(recorded.runs.end("127.0.0.1:8080", "m", 2000, "unloaded"))
    again = recorded.assign(observed(7))
    assert again.run_id != first.run_id
    assert again.counted_from_zero


def test_an_end_is_recorded_with_its_outcome_and_exit_code(recorded: RecordedRuns) -> None:
    recorded.assign(observed(5, process=process(7)))
    recorded.write(recorded.runs.end("127.0.0.1:8080", "m", 2000, "crashed", 139))
    (row,) = recorded.rows
    assert (row["outcome"], row["ended_at"], row["exit_code"]) == ("crashed", 2000, 139)
    assert recorded.runs.current("127.0.0.1:8080", "m") is None
    assert recorded.runs.end("127.0.0.1:8080", "m", 3000, "unloaded") == []


def test_two_servers_that_serve_one_model_have_separate_runs(recorded: RecordedRuns) -> None:
    one = recorded.assign(observed(5, process=process(7)))
    other = recorded.assign(observed(3, server="127.0.0.1:8081", process=process(8)))
    assert one.run_id != other.run_id
    assert recorded.runs.end_others("127.0.0.1:8081", ("m",), 2000) == []
    assert recorded.assign(observed(6, process=process(7))).run_id == one.run_id


def test_a_row_contains_what_later_comparisons_need_and_no_key(recorded: RecordedRuns) -> None:
    gpu = GpuIdentity("nvidia", 0, "GPU-1", "RTX", "0000:01:00.0", "580.1")
    gpus = GpuDetail({}, (gpu,))
    recorded.assign(observed(5, process=process(7), metrics_run="42", build=11434, slots=4, gpus=gpus))
    (row,) = recorded.rows
    assert (row["process_id"], row["boot_id"], row["started_boot_seconds"]) == (7, BOOT, 100.0)
    assert (row["build"], row["slots"], row["context_size"], row["metrics_run"]) == (11434, 4, 4096, "42")
    assert row["arguments"] == '["llama-server", "--api-key", "***", "--port", "8080"]'
    assert row["driver_version"] == "580.1"
    assert (
        row["gpus"] == '[{"vendor": "nvidia", "uuid": "GPU-1", "name": "RTX", "bus_address": "0000:01:00.0"}]'
    )


def test_an_id_of_a_deleted_run_is_not_used_again(recorded: RecordedRuns) -> None:
    first = recorded.assign(observed(5, process=process(7)))
    with recorded.database.transaction() as connection:
        connection.execute("DELETE FROM server_runs")
    recorded.restart()
    assert recorded.assign(observed(5, process=process(7))).run_id > first.run_id


def test_the_id_of_a_run_that_only_rows_refer_to_is_never_used_again(recorded: RecordedRuns) -> None:
    recorded.write([LLAMA_METRICS.insert(LLAMA_METRICS.row({"timestamp": 1, "model": "m", "run_id": 70}))])
    recorded.restart()
    assert recorded.assign(observed(5, process=process(7))).run_id > 70


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(st.integers(0, 50), st.integers(1, 4), st.booleans(), st.booleans()), min_size=1, max_size=8
    )
)
def test_the_sum_of_tokens_is_exact_over_restarts_of_server_and_collector_and_jumps_of_the_clock(
    tmp_path_factory: pytest.TempPathFactory, life: list[tuple[int, int, bool, bool]]
) -> None:
    """Each process generates the same number of tokens per sample; the collector restarts and the clock jumps."""
    with Database(tmp_path_factory.mktemp("runs") / "x.db", OWN_TABLES) as database:
        recorded, wall = RecordedRuns(database), 5000.0
        total, counted = 0, 0.0
        for number, (tokens, samples, new_collector, clock_jumps) in enumerate(life):
            last = 0.0
            for sample in range(1, samples + 1):
                if new_collector and sample == samples:
                    recorded.restart()
                wall += 1e6 if clock_jumps else -100.0
                counter = float(tokens * sample)
                assignment = recorded.assign(
                    observed(counter, process=process(100 + number, 200.0 + number, wall=wall))
                )
                counted += counter if assignment.counted_from_zero else counter - last
                last = counter
            total += tokens * samples
        assert counted == total
