import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from collector.errors import SourceFailed
from collector.sources import traffic
from collector.sources.base import Tick
from collector.sources.disk import DiskSource
from collector.sources.host import HOST_METRICS, HostSource, _busy_and_total


def row(source: HostSource, tick: Tick | None = None) -> dict[str, Any]:
    ((_table, values),) = source.read(tick or Tick(int(time.time()))).rows
    return dict(zip(HOST_METRICS.written_columns, values, strict=True))


@pytest.fixture
def source(tmp_path: Path) -> HostSource:
    return HostSource(DiskSource(tmp_path))


def test_a_rate_is_unknown_on_the_first_reading_and_known_on_the_second(source: HostSource) -> None:
    rates = [name for name in HOST_METRICS.written_columns if name.endswith("_per_second")]
    first = row(source)
    assert {name: first[name] for name in rates} == dict.fromkeys(rates)
    assert first["cpu_usage"] is None
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:  # the kernel counts processor time in steps of 10 ms
        sum(range(1000))
    second = row(source)
    assert second["swap_in_bytes_per_second"] is not None
    assert 0 < second["cpu_usage"] <= 100


def test_the_time_since_the_previous_sample_does_not_depend_on_the_wall_clock(
    source: HostSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    since_boot, unix = iter([100.0, 105.25, 4000.0]), iter([1_700_000_000, 1_600_000_000, 1_800_000_000])

    def clock(number: int) -> float:
        assert number == time.CLOCK_BOOTTIME
        return next(since_boot)

    monkeypatch.setattr(time, "clock_gettime", clock)
    rows = [row(source, Tick(next(unix))) for _ in range(3)]
    assert [values["elapsed_seconds"] for values in rows] == [None, 5.25, 3894.75]


def test_a_rate_multiplied_by_the_elapsed_time_is_the_growth_of_the_counter(
    source: HostSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = iter([1000, 251_000])
    monkeypatch.setattr(traffic, "physical_disks", list)
    monkeypatch.setattr(
        psutil,
        "disk_io_counters",
        lambda **_: {"sda": SimpleNamespace(read_bytes=next(counted), write_bytes=0)},
    )
    source = HostSource(DiskSource(Path("/")))
    row(source)
    values = row(source)
    assert values["disk_read_bytes_per_second"] * values["elapsed_seconds"] == pytest.approx(250_000)


def test_counters_of_a_reading_that_failed_are_not_used(
    source: HostSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    since_boot = iter([100.0, 105.0, 110.0])
    monkeypatch.setattr(time, "clock_gettime", lambda _: next(since_boot))
    row(source)
    with monkeypatch.context() as failing:
        failing.setattr(psutil, "virtual_memory", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            row(source)
    assert row(source)["elapsed_seconds"] == 10


def test_memory_and_load_are_those_of_the_machine(source: HostSource) -> None:
    values = row(source)
    assert values["memory_total_mb"] == psutil.virtual_memory().total / 2**20
    assert 0 < values["memory_usage"] < 100
    assert values["load_1m"] == pytest.approx(psutil.getloadavg()[0], abs=2)


def test_the_rate_of_a_counter_that_fell_is_unknown(
    source: HostSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = iter([1000, 2000, 500, 600])

    def disks(**_: object) -> dict[str, SimpleNamespace]:
        return {"sda": SimpleNamespace(read_bytes=next(counted), write_bytes=0)}

    monkeypatch.setattr(traffic, "physical_disks", list)
    monkeypatch.setattr(psutil, "disk_io_counters", disks)
    source = HostSource(DiskSource(Path("/")))
    rates = [row(source)["disk_read_bytes_per_second"] for _ in range(4)]
    assert rates[0] is None
    assert rates[1] > 0
    assert rates[2] is None
    assert rates[3] > 0


def test_a_machine_without_disks_interfaces_and_sensors_has_null_in_their_columns(
    source: HostSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "disk_io_counters", lambda **_: None)
    monkeypatch.setattr(psutil, "net_io_counters", lambda **_: {})
    monkeypatch.setattr(psutil, "sensors_temperatures", dict)
    row(source)
    values = row(source)
    assert values["disk_read_bytes_per_second"] is None
    assert values["network_sent_bytes_per_second"] is None
    assert values["cpu_temperature_celsius"] is None


def test_the_temperature_is_that_of_the_hottest_sensor_of_the_processor(
    source: HostSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    sensors = {
        "nvme": [SimpleNamespace(current=99.0)],
        "coretemp": [SimpleNamespace(current=50.0), SimpleNamespace(current=61.5)],
    }
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: sensors)
    assert row(source)["cpu_temperature_celsius"] == 61.5


def test_guest_time_is_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    class Times(tuple[float, ...]):
        user, idle, iowait, guest, guest_nice = 50.0, 40.0, 10.0, 20.0, 5.0

    monkeypatch.setattr(psutil, "cpu_times", lambda: Times((50.0, 40.0, 10.0, 20.0, 5.0)))
    assert _busy_and_total() == (50.0, 100.0)


def test_the_space_of_a_missing_directory_is_that_of_its_nearest_existing_parent(tmp_path: Path) -> None:
    missing = DiskSource(tmp_path / "no" / "such" / "directory").read(Tick(0))
    assert missing.detail.total_mb == psutil.disk_usage(str(tmp_path)).total / 2**20
    assert missing.snapshot == {"disk_usage": missing.detail.usage}


def test_the_space_of_a_path_below_a_file_is_that_of_the_partition_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert DiskSource(tmp_path / "file" / "below").read(Tick(0)).detail.total_mb > 0


def test_a_file_system_that_does_not_answer_makes_the_source_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: str) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(psutil, "disk_usage", broken)
    with pytest.raises(SourceFailed, match="Input/output error"):
        DiskSource(tmp_path).read(Tick(0))
