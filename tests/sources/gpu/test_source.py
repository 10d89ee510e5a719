"""What the source `gpu` makes of the readings of several vendors, without any driver."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.errors import CollectorError, DatabaseBusy, DatabaseDamaged, SourceAbsent, SourceFailed
from collector.health import OK
from collector.schema import SqlValue
from collector.sources.base import Query, Reading, Tick
from collector.sources.gpu.reader import GpuIdentity, GpuReading
from collector.sources.gpu.source import ENERGY_GAP_SECONDS, GPU_METRICS, GpuDetail, GpuSource, energy_used

GIB = 2**30
NOW = 1_700_000_000


def identity(vendor: str = "nvidia", index: int = 0, uuid: str | None = "GPU-0") -> GpuIdentity:
    return GpuIdentity(vendor, index, uuid, f"{vendor} {index}", f"0000:0{index}:00.0", "1.2.3")


def reading(
    gpu: GpuIdentity, processes: dict[int, int | None] | None = None, **values: SqlValue
) -> GpuReading:
    return GpuReading(gpu, values, processes or {})


class FakeReader:
    """A vendor whose answers a test sets."""

    def __init__(self, vendor: str, *readings: GpuReading, error: CollectorError | None = None) -> None:
        self.vendor = vendor
        self.readings = readings
        self.error = error
        self.fault = ""
        self.is_closed = False

    def read(self) -> Sequence[GpuReading]:
        if self.error:
            raise self.error
        return self.readings

    def close(self) -> None:
        self.is_closed = True


class FakeDatabase:
    """Rows of `gpu_metrics`, and what was asked of them."""

    def __init__(self, *rows: tuple[int, str, float | None]) -> None:
        self.error: Exception | None = None
        self.questions = 0
        self._connection = sqlite3.connect(":memory:")
        self._connection.row_factory = sqlite3.Row
        self._connection.execute(GPU_METRICS.create_statement)
        for timestamp, uuid, joules in rows:
            values: dict[str, SqlValue] = {"timestamp": timestamp, "gpu_index": 0, "uuid": uuid}
            row = GPU_METRICS.row(values | {"energy_joules": joules})
            self._connection.execute(GPU_METRICS.insert_statement, row)

    def query(self, statement: str, parameters: Sequence[object]) -> list[dict[str, Any]]:
        self.questions += 1
        if self.error:
            raise self.error
        return [dict(row) for row in self._connection.execute(statement, tuple(parameters))]

    def close(self) -> None:
        self._connection.close()


def rows(reading: Reading[Any]) -> list[dict[str, Any]]:
    return [dict(zip(GPU_METRICS.written_columns, row, strict=True)) for _, row in reading.rows]


def used(
    energies: Sequence[tuple[int, float | None]], query: Query | None = None, uuid: str | None = "GPU-0"
) -> list[float | None]:
    """Return `energy_used_joules` of one GPU that is read at these times and counts these joules."""
    reader = FakeReader("nvidia")
    source = GpuSource(query, [reader]) if query else GpuSource(readers=[reader])
    results = []
    for timestamp, joules in energies:
        reader.readings = (reading(identity(uuid=uuid), energy_joules=joules),)
        results.append(rows(source.read(Tick(timestamp)))[0]["energy_used_joules"])
    return results


class TestVendors:
    def test_the_gpus_of_two_vendors_add_up(self) -> None:
        nvidia = FakeReader(
            "nvidia",
            reading(
                identity("nvidia", 0),
                {7: GIB, 8: GIB},
                gpu_usage=90.0,
                memory_used_mb=8.0,
                memory_total_mb=24.0,
            ),
        )
        amd = FakeReader(
            "amd",
            reading(
                identity("amd", 0, "GPU-a"),
                {7: GIB},
                gpu_usage=30.0,
                memory_used_mb=2.0,
                memory_total_mb=16.0,
            ),
            reading(identity("amd", 1, "GPU-b"), {9: None}, memory_used_mb=1.0, memory_total_mb=16.0),
        )
        result: Reading[GpuDetail] = GpuSource(readers=[nvidia, amd]).read(Tick(NOW))
        assert result.snapshot == {"gpu_usage": 60, "gpu_memory_used": 11, "gpu_memory_total": 56}
        assert result.detail.process_memory_mb == {7: 2048, 8: 1024}
        assert result.detail.gpus == (
            identity("nvidia", 0),
            identity("amd", 0, "GPU-a"),
            identity("amd", 1, "GPU-b"),
        )
        assert [(row["vendor"], row["gpu_index"], row["uuid"]) for row in rows(result)] == [
            ("nvidia", 0, "GPU-0"),
            ("amd", 0, "GPU-a"),
            ("amd", 1, "GPU-b"),
        ]
        assert result.state == OK

    def test_an_absent_vendor_beside_a_present_one_is_no_fault(self) -> None:
        absent = FakeReader("amd", error=SourceAbsent("no AMD driver"))
        result = GpuSource(readers=[absent, FakeReader("nvidia", reading(identity()))]).read(Tick(NOW))
        assert result.state == OK
        assert len(result.rows) == 1

    def test_a_vendor_that_fails_beside_one_that_answers_makes_the_source_degraded(self) -> None:
        failed = FakeReader("amd", error=SourceFailed("the AMD driver does not answer"))
        result = GpuSource(readers=[failed, FakeReader("nvidia", reading(identity()))]).read(Tick(NOW))
        assert (result.state.name, result.state.level) == ("degraded", "warning")
        assert "the AMD driver does not answer" in result.state.message
        assert len(result.rows) == 1

    def test_gpus_that_do_not_answer_are_named_beside_a_vendor_that_fails(self) -> None:
        partial, failed = (
            FakeReader("nvidia", reading(identity())),
            FakeReader("amd", error=SourceFailed("AMD")),
        )
        partial.fault = "GPU 1: lost"
        assert GpuSource(readers=[partial, failed]).read(Tick(NOW)).state.message == "GPU 1: lost; AMD"

    def test_vendors_that_are_all_absent_make_the_source_absent_with_every_reason(self) -> None:
        readers = [FakeReader(name, error=SourceAbsent(f"no {name} driver")) for name in ("nvidia", "amd")]
        with pytest.raises(SourceAbsent, match="no nvidia driver; no amd driver"):
            GpuSource(readers=readers).read(Tick(NOW))

    def test_a_failure_beside_an_absence_is_a_failure(self) -> None:
        readers = [
            FakeReader("nvidia", error=SourceAbsent("no NVIDIA driver")),
            FakeReader("amd", error=SourceFailed("the AMD driver does not answer")),
        ]
        with pytest.raises(SourceFailed, match=r"^the AMD driver does not answer$"):
            GpuSource(readers=readers).read(Tick(NOW))

    def test_closing_closes_every_reader(self) -> None:
        readers = [FakeReader("nvidia"), FakeReader("amd")]
        GpuSource(readers=readers).close()
        assert all(reader.is_closed for reader in readers)


class TestEnergy:
    def test_energy_used_is_the_difference_to_the_row_before(self) -> None:
        assert used([(NOW, 100.0), (NOW + 5, 150.0), (NOW + 10, 150.0)]) == [None, 50, 0]

    def test_energy_used_of_a_counter_that_began_again_is_the_counter_itself(self) -> None:
        assert used([(NOW, 100.0), (NOW + 5, 40.0), (NOW + 10, 70.0)]) == [None, 40, 30]

    @pytest.mark.parametrize("step", [-86_400, -1, 86_400])
    def test_energy_used_is_not_changed_by_a_clock_that_is_set(self, step: int) -> None:
        assert used([(NOW, 100.0), (NOW + 5 + step, 150.0)]) == [None, 50]

    def test_energy_used_includes_that_of_samples_in_which_the_counter_was_not_reported(self) -> None:
        assert used([(NOW, 100.0), (NOW + 5, None), (NOW + 10, 160.0)]) == [None, None, 60]

    def test_energy_used_of_two_gpus_is_counted_separately(self) -> None:
        reader = FakeReader("nvidia")
        source = GpuSource(readers=[reader])
        for joules in (100.0, 150.0):
            gpus = (identity(index=0, uuid="GPU-0"), identity(index=1, uuid="GPU-1"))
            reader.readings = tuple(reading(gpu, energy_joules=joules * (gpu.index + 1)) for gpu in gpus)
            result = source.read(Tick(NOW))
        assert [row["energy_used_joules"] for row in rows(result)] == [50, 100]

    def test_energy_used_follows_the_gpu_where_its_number_changes(self) -> None:
        reader = FakeReader("nvidia", reading(identity(index=1), energy_joules=100.0))
        source = GpuSource(readers=[reader])
        source.read(Tick(NOW))
        reader.readings = (reading(identity(index=0), energy_joules=130.0),)
        assert rows(source.read(Tick(NOW)))[0]["energy_used_joules"] == 30

    def test_energy_used_of_a_gpu_without_an_identifier_is_unknown(self) -> None:
        assert used([(NOW, 100.0), (NOW + 5, 150.0)], uuid=None) == [None, None]


class TestEnergyAcrossAStartOfTheCollector:
    @pytest.mark.parametrize(
        ("stored", "joules", "expected"),
        [
            ([(NOW - 5, "GPU-0", 60.0)], 100.0, 40),
            ([(NOW - 3600, "GPU-0", 60.0)], 100.0, 40),
            ([(NOW - 3601, "GPU-0", 60.0)], 100.0, None),
            ([(NOW - 5, "GPU-0", 160.0)], 100.0, 100),  # the driver was loaded again
            ([(NOW - 3601, "GPU-0", 160.0)], 100.0, None),
            ([(NOW - 5, "GPU-1", 60.0)], 100.0, None),
            ([(NOW - 10, "GPU-0", 20.0), (NOW - 5, "GPU-0", 60.0), (NOW - 5, "GPU-1", 90.0)], 100.0, 40),
            ([(NOW - 10, "GPU-0", 20.0), (NOW - 5, "GPU-0", None)], 100.0, None),
            ([(NOW - 10, "GPU-0", 20.0), (NOW - 10, "GPU-0", 60.0)], 100.0, 40),  # two rows of one second
            ([(NOW + 5, "GPU-0", 60.0)], 100.0, None),  # the clock was set back: its age is not known
            ([], 100.0, None),
        ],
    )
    def test_energy_used_after_a_start_is_the_difference_to_the_newest_stored_row_if_that_is_at_most_an_hour_old(
        self, stored: list[tuple[int, str, float | None]], joules: float, expected: float | None
    ) -> None:
        with closing(FakeDatabase(*stored)) as database:
            assert used([(NOW, joules)], database.query) == [expected]

    def test_energy_used_after_a_start_reads_the_database_once_per_gpu(self) -> None:
        with closing(FakeDatabase((NOW - 5, "GPU-0", 60.0))) as database:
            assert used([(NOW, 100.0), (NOW + 5, 150.0), (NOW + 10, 150.0)], database.query) == [40, 50, 0]
            assert database.questions == 1

    @pytest.mark.parametrize("error", [DatabaseBusy("locked"), DatabaseDamaged("damaged")])
    def test_energy_used_after_a_start_is_unknown_where_the_database_cannot_be_read(
        self, error: Exception
    ) -> None:
        with closing(FakeDatabase((NOW - 5, "GPU-0", 60.0))) as database:
            database.error = error
            assert used([(NOW, 100.0), (NOW + 5, 150.0)], database.query) == [None, 50]

    def test_energy_used_after_a_start_finds_the_stored_row_by_the_index_of_timestamp(self) -> None:
        plans = []
        with closing(FakeDatabase()) as database:
            database._connection.execute(GPU_METRICS.create_index_statement(GPU_METRICS.indexes[0]))

            def explain(statement: str, parameters: Sequence[object]) -> list[dict[str, Any]]:
                plans.extend(database.query(f"EXPLAIN QUERY PLAN {statement}", parameters))
                return []

            used([(NOW, 100.0)], explain)
        assert any("idx_gpu_metrics_timestamp (timestamp>?)" in step["detail"] for step in plans)


joules = st.floats(0, 1e12)


class TestEnergyBetweenTwoStoredRows:
    def test_energy_used_between_stored_rows_is_unknown_without_a_row_before(self) -> None:
        assert energy_used(None, (NOW, 100.0)) is None

    @given(joules, joules, st.integers(0, ENERGY_GAP_SECONDS))
    def test_energy_used_between_stored_rows_is_never_negative_and_never_more_than_the_counter(
        self, before: float, now: float, seconds: int
    ) -> None:
        result = energy_used((NOW, before), (NOW + seconds, now))
        assert result is not None
        assert 0 <= result <= now

    @given(joules, joules, st.one_of(st.integers(max_value=-1), st.integers(ENERGY_GAP_SECONDS + 1)))
    def test_energy_used_between_stored_rows_is_unknown_where_the_row_before_is_older_than_an_hour_or_younger_than_the_row(
        self, before: float, now: float, seconds: int
    ) -> None:
        assert energy_used((NOW, before), (NOW + seconds, now)) is None
