import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pynvml
import pytest

from collector.errors import SourceAbsent, SourceFailed
from collector.health import OK
from collector.sources.base import Reading, Tick
from collector.sources.gpu.nvidia import RETRY_SECONDS, NvidiaReader
from collector.sources.gpu.reader import GpuIdentity
from collector.sources.gpu.source import GPU_METRICS, GpuDetail, GpuSource
from tests.support.nvml_stub import GIB, NvmlStub

IDENTITY = {"timestamp", "gpu_index", "vendor", "uuid", "name", "bus_address"}
MEASURED = set(GPU_METRICS.written_columns) - IDENTITY

COLUMNS_OF = {
    "nvmlDeviceGetUUID": {"uuid", "energy_used_joules"},
    "nvmlDeviceGetName": {"name"},
    "nvmlDeviceGetPciInfo_v3": {"bus_address"},
    "nvmlDeviceGetUtilizationRates": {"gpu_usage", "memory_bandwidth_usage"},
    "nvmlDeviceGetTemperature": {"temperature_celsius"},
    "nvmlDeviceGetFanSpeed": {"fan_usage"},
    "nvmlDeviceGetPowerUsage": {"power_watts"},
    "nvmlDeviceGetEnforcedPowerLimit": {"power_limit_watts"},
    "nvmlDeviceGetClockInfo": {"graphics_clock_mhz", "memory_clock_mhz"},
    "nvmlDeviceGetTotalEnergyConsumption": {"energy_joules", "energy_used_joules"},
    "nvmlDeviceGetPerformanceState": {"performance_state"},
    "nvmlDeviceGetCurrentClocksEventReasons": {"throttle_reasons"},
    "nvmlDeviceGetComputeRunningProcesses_v3": set[str](),
    "nvmlDeviceGetGraphicsRunningProcesses_v3": set[str](),
}
"""Columns that each NVML function fills. Memory, which has two functions, has tests of its own."""


class Clock:
    """A clock that a test sets."""

    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds

    def advance(self, seconds: float = RETRY_SECONDS) -> None:
        self.seconds += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NvmlStub]:
    stub = NvmlStub(tmp_path)
    monkeypatch.setenv("NVML_STUB", str(tmp_path))
    with stub.loaded():
        yield stub


def stored_energy(_statement: str, _parameters: object) -> list[dict[str, Any]]:
    """The newest stored row of every GPU, five seconds older than the first reading."""
    return [{"timestamp": 1_700_000_000 - 5, "energy_joules": 123_000.0}]


@pytest.fixture
def reader(clock: Clock) -> NvidiaReader:
    return NvidiaReader(clock=clock)


@pytest.fixture
def source(stub: NvmlStub, reader: NvidiaReader) -> Iterator[GpuSource]:
    del stub  # it must exist before and after
    source = GpuSource(stored_energy, [reader])
    yield source
    source.close()


def read(source: GpuSource, timestamp: int = 1_700_000_000) -> Reading[GpuDetail]:
    return source.read(Tick(timestamp))


def rows(reading: Reading[Any]) -> list[dict[str, Any]]:
    assert all(table is GPU_METRICS for table, _ in reading.rows)
    return [dict(zip(GPU_METRICS.written_columns, row, strict=True)) for _, row in reading.rows]


def row(source: GpuSource) -> dict[str, Any]:
    (only,) = rows(read(source))
    return only


def null_columns(row: dict[str, Any]) -> set[str]:
    return {column for column, value in row.items() if value is None}


def test_a_row_contains_what_the_driver_reports_in_the_units_of_its_columns(source: GpuSource) -> None:
    connection = sqlite3.connect(":memory:")
    connection.row_factory = sqlite3.Row
    connection.execute(GPU_METRICS.create_statement)
    for table, values in read(source).rows:
        connection.execute(table.insert_statement, values)
    stored = dict(connection.execute("SELECT * FROM gpu_metrics").fetchone())
    connection.close()
    assert stored == {
        "id": 1,
        "timestamp": 1_700_000_000,
        "gpu_index": 0,
        "uuid": "GPU-00000000",
        "name": "NVIDIA GeForce RTX 3090",
        "gpu_usage": 37,
        "memory_bandwidth_usage": 12,
        "memory_used_mb": 10 * 1024,
        "memory_free_mb": 13.5 * 1024,
        "memory_total_mb": 24 * 1024,
        "temperature_celsius": 61,
        "fan_usage": 45,
        "power_watts": 215.5,
        "power_limit_watts": 350,
        "graphics_clock_mhz": 1905,
        "memory_clock_mhz": 9751,
        "energy_joules": 123456.789,
        "performance_state": 2,
        "throttle_reasons": 4,
        "vendor": "nvidia",
        "bus_address": "0000:01:00.0",
        "energy_used_joules": pytest.approx(456.789),
    }


def test_usage_is_averaged_and_memory_summed_over_the_gpus(stub: NvmlStub, source: GpuSource) -> None:
    stub.set_count(2)
    stub.answer("nvmlDeviceGetUtilizationRates", 100, 0, gpu=1)
    stub.answer("nvmlDeviceGetMemoryInfo_v2", 8 * GIB, 0, 7 * GIB, 1 * GIB, gpu=1)
    reading = read(source)
    assert reading.snapshot == {
        "gpu_usage": (37 + 100) / 2,
        "gpu_memory_used": 11 * 1024,
        "gpu_memory_total": 32 * 1024,
    }
    assert reading.state == OK


def test_a_gpu_that_does_not_report_its_usage_does_not_lower_the_mean(
    stub: NvmlStub, source: GpuSource
) -> None:
    stub.set_count(2)
    stub.fail("nvmlDeviceGetUtilizationRates", pynvml.NVML_ERROR_NOT_SUPPORTED, gpu=0)  # MIG
    stub.answer("nvmlDeviceGetUtilizationRates", 80, 0, gpu=1)
    assert read(source).snapshot["gpu_usage"] == 80


def test_sixteen_gpus_have_sixteen_rows(stub: NvmlStub, source: GpuSource) -> None:
    stub.set_count(16)
    for gpu in range(16):
        stub.answer("nvmlDeviceGetTemperature", 40 + gpu, gpu=gpu)
        stub.answer("nvmlDeviceGetComputeRunningProcesses_v3", f"4711:{GIB}", gpu=gpu)
    reading = read(source)
    seen = [(one["gpu_index"], one["uuid"], one["temperature_celsius"]) for one in rows(reading)]
    assert seen == [(gpu, f"GPU-{gpu:08}", 40 + gpu) for gpu in range(16)]
    assert reading.detail.process_memory_mb == {4711: 16 * 1024}


@pytest.mark.parametrize(
    "code",
    [pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_NO_PERMISSION, pynvml.NVML_ERROR_UNKNOWN],
)
@pytest.mark.parametrize("function", COLUMNS_OF)
def test_only_the_columns_of_a_value_that_the_driver_refuses_are_null(
    stub: NvmlStub, source: GpuSource, function: str, code: int
) -> None:
    stub.fail(function, code)
    assert null_columns(row(source)) == COLUMNS_OF[function]


@pytest.mark.parametrize(
    "macros", [("STUB_OF_AN_OLD_DRIVER",), ("STUB_OF_AN_OLD_DRIVER", "STUB_OF_THE_FIRST_DRIVER")]
)
def test_an_old_driver_is_asked_by_its_older_names_and_only_what_it_lacks_is_null(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock, macros: tuple[str, ...]
) -> None:
    stub = NvmlStub(tmp_path)
    stub.install(*macros)
    stub.answer("nvmlDeviceGetComputeRunningProcesses_v3", f"4711:{GIB} 4712:{2 * GIB}")
    stub.answer("nvmlDeviceGetGraphicsRunningProcesses_v3", f"4713:{GIB}")
    monkeypatch.setenv("NVML_STUB", str(tmp_path))
    with stub.loaded():
        source = GpuSource(readers=[NvidiaReader(clock=clock)])
        reading = read(source)
        source.close()
    (only,) = rows(reading)
    assert null_columns(only) == {"energy_joules", "energy_used_joules"}
    assert (only["bus_address"], only["throttle_reasons"]) == ("0000:01:00.0", 4)
    assert only["memory_used_mb"] == 10.5 * 1024
    assert reading.detail.process_memory_mb == {4711: 1024, 4712: 2048, 4713: 1024}


def test_a_number_that_means_not_available_is_null(stub: NvmlStub, source: GpuSource) -> None:
    nothing = 2**32 - 1
    stub.answer("nvmlDeviceGetPowerUsage", nothing)
    stub.answer("nvmlDeviceGetUtilizationRates", nothing, 5)
    stub.answer("nvmlDeviceGetTotalEnergyConsumption", 2**64 - 1)
    stub.answer("nvmlDeviceGetPerformanceState", pynvml.NVML_PSTATE_UNKNOWN)
    stub.answer("nvmlDeviceGetMemoryInfo_v2", 24 * GIB, 0, 2**64 - 1, 2**64 - 1)
    assert null_columns(row(source)) == {
        "power_watts",
        "gpu_usage",
        "energy_joules",
        "energy_used_joules",
        "performance_state",
        "memory_used_mb",
        "memory_free_mb",
    }


@pytest.mark.parametrize(
    ("function", "columns"),
    [
        ("nvmlDeviceGetTemperature", {"temperature_celsius"}),
        ("nvmlDeviceGetPowerUsage", {"power_watts"}),
        ("nvmlDeviceGetEnforcedPowerLimit", {"power_limit_watts"}),
        ("nvmlDeviceGetClockInfo", {"graphics_clock_mhz", "memory_clock_mhz"}),
        ("nvmlDeviceGetFanSpeed", set()),
    ],
)
def test_a_0_that_no_working_gpu_reports_is_null(
    stub: NvmlStub, source: GpuSource, function: str, columns: set[str]
) -> None:
    stub.answer(function, "0 0 0 0")
    assert null_columns(row(source)) == columns


def test_a_name_that_is_not_utf8_costs_nothing_but_its_own_characters(
    stub: NvmlStub, source: GpuSource
) -> None:
    stub.answer("nvmlDeviceGetName", os.fsdecode(b"NVIDIA \xe9\xff RTX"))
    stub.answer("nvmlSystemGetDriverVersion", os.fsdecode(b"580\xff"))
    first = row(source)
    assert first["name"] == "NVIDIA \N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER} RTX"
    assert null_columns(first) == set()


def refuse_memory(stub: NvmlStub) -> None:
    for function in ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetMemoryInfo_v2"):
        stub.fail(function, pynvml.NVML_ERROR_NOT_SUPPORTED)


def report_zero_memory(stub: NvmlStub) -> None:
    for function in ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetMemoryInfo_v2"):
        stub.answer(function, 0, 0, 0, 0)


@pytest.mark.parametrize("refuse", [refuse_memory, report_zero_memory])
def test_a_gpu_that_shares_the_memory_of_the_host_has_null_there_but_its_processes_have_a_value(
    stub: NvmlStub, source: GpuSource, refuse: Callable[[NvmlStub], None]
) -> None:
    refuse(stub)
    stub.answer("nvmlDeviceGetComputeRunningProcesses_v3", f"4711:{GIB}")
    reading = read(source)
    assert null_columns(rows(reading)[0]) == {"memory_used_mb", "memory_free_mb", "memory_total_mb"}
    assert reading.snapshot == {"gpu_usage": 37, "gpu_memory_used": None, "gpu_memory_total": None}
    assert reading.detail.process_memory_mb == {4711: 1024}


def test_a_gpu_that_supports_no_value_at_all_still_has_a_row(stub: NvmlStub, source: GpuSource) -> None:
    for function in ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetMemoryInfo_v2", *COLUMNS_OF):
        stub.fail(function, pynvml.NVML_ERROR_NOT_SUPPORTED)
    assert null_columns(row(source)) == MEASURED | {"uuid", "name", "bus_address"}


def test_a_process_memory_is_summed_over_gpus_and_instances_of_one_gpu(
    stub: NvmlStub, source: GpuSource
) -> None:
    stub.set_count(2)
    stub.answer("nvmlDeviceGetComputeRunningProcesses_v3", f"7:{GIB} 8:{GIB} 7:{2 * GIB}", gpu=0)
    stub.answer("nvmlDeviceGetComputeRunningProcesses_v3", f"7:{4 * GIB}", gpu=1)
    assert read(source).detail.process_memory_mb == {7: 7 * 1024, 8: 1024}


def test_a_process_that_computes_and_draws_is_counted_once(stub: NvmlStub, source: GpuSource) -> None:
    stub.answer("nvmlDeviceGetComputeRunningProcesses_v3", f"7:{GIB}")
    stub.answer("nvmlDeviceGetGraphicsRunningProcesses_v3", f"7:{GIB} 9:{GIB // 2}")
    assert read(source).detail.process_memory_mb == {7: 1024, 9: 512}


def test_a_process_whose_memory_is_unknown_on_one_gpu_is_left_out(stub: NvmlStub, source: GpuSource) -> None:
    nothing = 2**64 - 1
    stub.set_count(2)
    stub.answer("nvmlDeviceGetComputeRunningProcesses_v3", f"7:{nothing} 8:{nothing} 9:{GIB}", gpu=0)
    stub.answer("nvmlDeviceGetComputeRunningProcesses_v3", f"8:{GIB} 9:{GIB}", gpu=1)
    assert read(source).detail.process_memory_mb == {9: 2 * 1024}


def test_an_amount_that_one_process_list_lacks_comes_from_the_other(
    stub: NvmlStub, source: GpuSource
) -> None:
    stub.answer("nvmlDeviceGetComputeRunningProcesses_v3", f"7:{2**64 - 1}")
    stub.answer("nvmlDeviceGetGraphicsRunningProcesses_v3", f"7:{GIB}")
    assert read(source).detail.process_memory_mb == {7: 1024}


def test_what_never_changes_is_read_once_per_session(stub: NvmlStub, source: GpuSource) -> None:
    stub.set_count(2)
    for _ in range(3):
        assert [one["uuid"] for one in rows(read(source))] == ["GPU-00000000", "GPU-00000001"]
    calls = stub.calls()
    assert calls["nvmlInitWithFlags"] == 1
    assert calls["nvmlSystemGetDriverVersion"] == 1
    assert calls["nvmlDeviceGetName"] == calls["nvmlDeviceGetUUID"] == calls["nvmlDeviceGetPciInfo_v3"] == 2
    assert calls["nvmlDeviceGetPowerUsage"] == 6


def test_the_identity_of_a_gpu_is_what_its_driver_reports(stub: NvmlStub, source: GpuSource) -> None:
    stub.set_count(16)
    gpus = read(source).detail.gpus
    name = "NVIDIA GeForce RTX 3090"
    assert gpus[0] == GpuIdentity("nvidia", 0, "GPU-00000000", name, "0000:01:00.0", "580.95.05")
    assert gpus[9] == GpuIdentity("nvidia", 9, "GPU-00000009", name, "0000:0a:00.0", "580.95.05")


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ("00000000:C1:00.0", "0000:c1:00.0"),
        ("0000:01:00.0", "0000:01:00.0"),
        ("00010000:01:00.0", "10000:01:00.0"),  # behind a host bridge of its own (Intel VMD)
        ("", None),
        ("N/A", None),
        ("\udcff0000:01:00.0", None),
    ],
)
def test_a_bus_address_is_stored_as_linux_writes_it(
    stub: NvmlStub, source: GpuSource, written: str, stored: str | None
) -> None:
    stub.answer("nvmlDeviceGetPciInfo_v3", written)
    assert row(source)["bus_address"] == stored


@pytest.mark.parametrize(
    "code", [pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_UNKNOWN]
)
def test_a_driver_that_does_not_report_its_version_is_read_without_it(
    stub: NvmlStub, source: GpuSource, code: int
) -> None:
    stub.fail("nvmlSystemGetDriverVersion", code)
    reading = read(source)
    assert reading.detail.gpus[0].driver_version is None
    assert null_columns(rows(reading)[0]) == set()
    assert reading.state == OK


def test_energy_that_is_used_while_a_gpu_is_lost_is_in_its_next_row(
    stub: NvmlStub, source: GpuSource, clock: Clock
) -> None:
    stub.set_count(2)
    read(source)
    stub.fail("*", pynvml.NVML_ERROR_GPU_IS_LOST, gpu=1)
    assert len(rows(read(source))) == 1
    stub.recover()
    stub.answer("nvmlDeviceGetTotalEnergyConsumption", 123456789 + 5000)
    clock.advance()
    assert [one["energy_used_joules"] for one in rows(read(source))] == pytest.approx([5, 5])


def test_energy_after_a_reload_of_the_driver_is_what_the_new_counter_shows(
    stub: NvmlStub, source: GpuSource, clock: Clock
) -> None:
    read(source)
    clock.advance()
    stub.fail("nvmlDeviceGetCount_v2", pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
    with pytest.raises(SourceAbsent):
        read(source)
    stub.recover()
    stub.answer("nvmlDeviceGetTotalEnergyConsumption", 7000)
    assert row(source)["energy_used_joules"] == 7


def test_a_power_limit_that_the_user_changes_is_read(stub: NvmlStub, source: GpuSource) -> None:
    assert row(source)["power_limit_watts"] == 350
    stub.answer("nvmlDeviceGetEnforcedPowerLimit", 250_000)
    assert row(source)["power_limit_watts"] == 250


@pytest.mark.parametrize(
    ("function", "code", "words"),
    [
        ("nvmlInitWithFlags", pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "no NVIDIA driver is installed"),
        ("nvmlInitWithFlags", pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "modprobe nvidia"),
        ("nvmlDeviceGetCount_v2", pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "modprobe nvidia"),
    ],
)
def test_a_driver_that_is_missing_or_not_loaded_is_absent(
    stub: NvmlStub, source: GpuSource, function: str, code: int, words: str
) -> None:
    stub.fail(function, code)
    with pytest.raises(SourceAbsent, match=words):
        read(source)


def test_a_driver_without_a_gpu_is_absent(stub: NvmlStub, source: GpuSource) -> None:
    stub.set_count(0)
    with pytest.raises(SourceAbsent, match="finds no GPU"):
        read(source)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "updated .* reboot, or .* reload"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "/dev/nvidia"),
        (pynvml.NVML_ERROR_UNKNOWN, "Unknown Error.*nvidia-smi"),
        (4242, "stub error 4242.*nvidia-smi"),
    ],
)
def test_a_driver_that_refuses_to_start_has_failed_and_the_message_says_what_to_do(
    stub: NvmlStub, source: GpuSource, code: int, words: str
) -> None:
    stub.fail("nvmlInitWithFlags", code)
    with pytest.raises(SourceFailed, match=words):
        read(source)


def test_an_absent_driver_is_searched_once_per_minute_and_used_once_it_is_there(
    stub: NvmlStub, source: GpuSource, clock: Clock
) -> None:
    stub.fail("nvmlInitWithFlags", pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
    for _ in range(12):
        with pytest.raises(SourceAbsent, match="not loaded"):
            read(source)
        clock.advance(5)
    assert stub.calls()["nvmlInitWithFlags"] == 1
    stub.answer("nvmlInitWithFlags")
    for _ in range(2):
        assert row(source)["gpu_usage"] == 37


def test_an_error_raised_at_every_reading_does_not_grow_in_memory(stub: NvmlStub, source: GpuSource) -> None:
    def depth() -> int:
        with pytest.raises(SourceAbsent) as caught:
            read(source)
        return len(caught.traceback)

    stub.fail("nvmlInitWithFlags", pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
    depth()
    assert depth() == depth()


def test_a_value_refused_at_every_reading_does_not_grow_in_memory(
    stub: NvmlStub, source: GpuSource, reader: NvidiaReader
) -> None:
    stub.fail("nvmlDeviceGetFanSpeed", pynvml.NVML_ERROR_UNKNOWN)
    for _ in range(3):
        read(source)
    assert len(reader._gpus[0]._errors) == 1


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_many_failed_starts_leave_no_descriptor_and_no_session_open(
    stub: NvmlStub, source: GpuSource, clock: Clock
) -> None:
    stub.set_count(0)
    with pytest.raises(SourceAbsent):
        read(source)
    descriptors = open_descriptors()
    for code in [pynvml.NVML_ERROR_DRIVER_NOT_LOADED, pynvml.NVML_ERROR_UNKNOWN, 0] * 50:
        stub.fail("nvmlInitWithFlags", code)
        clock.advance()
        with pytest.raises((SourceAbsent, SourceFailed)):
            read(source)
    assert open_descriptors() == descriptors
    with stub.loaded() as library:
        assert library.nvmlShutdown() == pynvml.NVML_ERROR_UNINITIALIZED


def test_closing_ends_the_session_and_is_allowed_twice_and_before_any_reading(stub: NvmlStub) -> None:
    source = GpuSource(readers=[NvidiaReader()])
    source.close()
    read(source)
    source.close()
    source.close()
    assert stub.calls()["nvmlShutdown"] == 1
    assert pynvml.nvmlLib is None


def test_a_lost_gpu_has_no_row_and_the_others_have_theirs(stub: NvmlStub, source: GpuSource) -> None:
    stub.set_count(3)
    read(source)
    stub.fail("nvmlDeviceGetPowerUsage", pynvml.NVML_ERROR_GPU_IS_LOST, gpu=1)
    reading = read(source)
    assert [one["gpu_index"] for one in rows(reading)] == [0, 2]
    assert reading.snapshot["gpu_memory_total"] == 2 * 24 * 1024
    assert (reading.state.name, reading.state.level) == ("degraded", "warning")
    assert "GPU 1 (NVIDIA GeForce RTX 3090): GPU is lost" in reading.state.message
    assert "dmesg" in reading.state.message


def test_a_lost_gpu_that_works_again_is_read_in_a_new_session(
    stub: NvmlStub, source: GpuSource, clock: Clock
) -> None:
    stub.set_count(2)
    read(source)
    stub.fail("nvmlDeviceGetTemperature", pynvml.NVML_ERROR_GPU_IS_LOST, gpu=1)
    assert len(rows(read(source))) == 1
    stub.recover()  # the GPU works again, but stays lost in this session
    assert len(rows(read(source))) == 1
    clock.advance()
    reading = read(source)
    assert [one["uuid"] for one in rows(reading)] == ["GPU-00000000", "GPU-00000001"]
    assert reading.state == OK


def test_only_the_row_of_a_gpu_whose_handle_is_refused_is_missing(stub: NvmlStub, source: GpuSource) -> None:
    stub.set_count(2)
    stub.fail("nvmlDeviceGetHandleByIndex_v2", pynvml.NVML_ERROR_UNKNOWN, gpu=0)
    reading = read(source)
    assert [one["gpu_index"] for one in rows(reading)] == [1]
    assert "GPU 0: Unknown Error" in reading.state.message


def test_a_gpu_that_answers_only_with_errors_has_no_row(stub: NvmlStub, source: GpuSource) -> None:
    stub.set_count(2)
    for function in ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetMemoryInfo_v2", *COLUMNS_OF):
        stub.fail(function, pynvml.NVML_ERROR_RESET_REQUIRED, gpu=1)
    reading = read(source)
    assert [one["gpu_index"] for one in rows(reading)] == [0]
    assert "GPU 1: GPU requires restart" in reading.state.message


def test_a_lost_gpu_is_not_asked_until_the_next_session_is_due(
    stub: NvmlStub, source: GpuSource, clock: Clock
) -> None:
    stub.set_count(2)
    stub.fail("*", pynvml.NVML_ERROR_GPU_IS_LOST, gpu=1)
    for _ in range(24):
        assert len(rows(read(source))) == 1
        clock.advance(5)
    calls = stub.calls()
    assert calls["nvmlInitWithFlags"] == 2
    assert calls["nvmlDeviceGetHandleByIndex_v2"] == 4


def test_the_source_fails_until_its_only_gpu_that_was_lost_works_again(
    stub: NvmlStub, source: GpuSource, clock: Clock
) -> None:
    read(source)
    stub.fail("*", pynvml.NVML_ERROR_GPU_IS_LOST, gpu=0)
    for _ in range(2):
        with pytest.raises(SourceFailed, match="GPU is lost"):
            read(source)
    clock.advance()
    stub.recover()
    assert row(source)["gpu_usage"] == 37


@pytest.mark.parametrize(
    "code",
    [
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
        pynvml.NVML_ERROR_UNINITIALIZED,
    ],
)
@pytest.mark.parametrize("function", ["nvmlDeviceGetCount_v2", "nvmlDeviceGetTemperature"])
def test_a_driver_that_is_unloaded_gives_no_rows_until_a_new_session_finds_it(
    stub: NvmlStub, source: GpuSource, clock: Clock, function: str, code: int
) -> None:
    stub.set_count(2)
    read(source)
    clock.advance()
    stub.fail(function, code)
    with pytest.raises((SourceAbsent, SourceFailed), match="the NVIDIA driver"):
        read(source)
    stub.recover()
    assert len(rows(read(source))) == 2
    assert stub.calls()["nvmlInitWithFlags"] == 2


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 2)])
def test_gpus_that_are_added_or_removed_are_found_at_the_next_reading(
    stub: NvmlStub, source: GpuSource, before: int, after: int
) -> None:
    stub.set_count(before)
    assert len(rows(read(source))) == before
    stub.set_count(after)
    assert [one["uuid"] for one in rows(read(source))] == [f"GPU-{gpu:08}" for gpu in range(after)]


def test_a_reading_whose_call_hangs_is_complete_once_the_call_returns(
    stub: NvmlStub, source: GpuSource
) -> None:
    with ThreadPoolExecutor(1) as thread:
        with stub.hanging("nvmlDeviceGetPowerUsage") as wait_until_it_hangs:
            reading = thread.submit(read, source)
            wait_until_it_hangs()
            assert not reading.done()
        assert null_columns(rows(reading.result())[0]) == set()
        assert null_columns(rows(thread.submit(read, source).result())[0]) == set()


def test_nvml_is_not_imported_before_the_first_reading() -> None:
    code = (
        "import sys; from collector.sources.gpu.source import GpuSource; GpuSource().close(); "
        "assert 'pynvml' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_driver_that_is_installed_later_is_used_without_a_restart_of_the_collector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    NvmlStub(tmp_path).uninstall()
    run_in_a_process_that_finds_the_stub(read_a_driver_that_is_installed_later, tmp_path, monkeypatch)


def read_a_driver_that_is_installed_later(directory: Path) -> None:
    clock = Clock()
    source = GpuSource(readers=[NvidiaReader(clock=clock)])
    for _ in range(2):
        with pytest.raises(SourceAbsent, match="no NVIDIA driver is installed"):
            read(source)
    NvmlStub(directory)
    clock.advance(RETRY_SECONDS - 1)
    with pytest.raises(SourceAbsent, match="no NVIDIA driver is installed"):
        read(source)
    clock.advance(1)
    assert row(source)["gpu_usage"] == 37
    source.close()


def test_a_driver_that_is_updated_is_used_without_a_restart_of_the_collector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    NvmlStub(tmp_path)
    run_in_a_process_that_finds_the_stub(read_a_driver_that_is_updated, tmp_path, monkeypatch)


def read_a_driver_that_is_updated(directory: Path) -> None:
    stub, clock = NvmlStub(directory), Clock()
    source = GpuSource(readers=[NvidiaReader(clock=clock)])
    read(source)
    stub.install("STUB_VERSION=2")
    assert row(source)["gpu_usage"] == 37  # the old library works with the old kernel module
    stub.fail("*", pynvml.NVML_ERROR_UNKNOWN, gpu=0)
    stub.set_module_version(2)
    with pytest.raises(SourceFailed, match="Unknown Error"):
        read(source)
    clock.advance()
    stub.recover()
    assert row(source)["gpu_usage"] == 37
    source.close()


def run_in_a_process_that_finds_the_stub(
    action: Callable[[Path], None], directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dynamic linker reads its search path when a process starts, so this takes a new process."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(directory))
    monkeypatch.setenv("NVML_STUB", str(directory))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        process.submit(action, directory).result()
