"""The host: processor, memory, swap, disk, network, temperature."""

import time
from collections.abc import Mapping
from typing import Any

import psutil

from collector.schema import AUTOMATIC_ID, BYTES_PER_MB, Column, Index, SqlValue, Table
from collector.sources.base import Reading, Tick
from collector.sources.disk import DiskSource

HOST_METRICS = Table(
    "host_metrics",
    "One row a sample: the whole machine.",
    (
        Column("id", AUTOMATIC_ID, "key", "ascending"),
        Column("timestamp", "INTEGER NOT NULL", "time", "Unix seconds of the sample"),
        Column(
            "cpu_usage", "REAL", "gauge", "busy share of all cores since the last sample, percent (0-100)"
        ),
        Column("load_1m", "REAL", "gauge", "load average of 1 minute"),
        Column("load_5m", "REAL", "gauge", "load average of 5 minutes"),
        Column("load_15m", "REAL", "gauge", "load average of 15 minutes"),
        Column("memory_total_mb", "REAL", "gauge", "RAM, MB of 1,048,576 bytes"),
        Column("memory_available_mb", "REAL", "gauge", "RAM that programs can still get, MB"),
        Column("memory_usage", "REAL", "gauge", "RAM that is not available, percent (0-100)"),
        Column("swap_total_mb", "REAL", "gauge", "swap, MB"),
        Column("swap_used_mb", "REAL", "gauge", "swap in use, MB"),
        Column("swap_usage", "REAL", "gauge", "swap in use, percent (0-100); 0 without swap"),
        Column("swap_in_bytes_per_second", "REAL", "gauge", "read back from swap since the last sample"),
        Column("swap_out_bytes_per_second", "REAL", "gauge", "written to swap since the last sample"),
        Column("disk_total_mb", "REAL", "gauge", "partition of the models directory, MB"),
        Column("disk_used_mb", "REAL", "gauge", "in use on it, MB"),
        Column("disk_free_mb", "REAL", "gauge", "free on it for users, MB"),
        Column("disk_usage", "REAL", "gauge", "in use on it, percent (0-100)"),
        Column("disk_read_bytes_per_second", "REAL", "gauge", "all disks, since the last sample"),
        Column("disk_write_bytes_per_second", "REAL", "gauge", "all disks, since the last sample"),
        Column(
            "network_received_bytes_per_second",
            "REAL",
            "gauge",
            "all interfaces but loopback, since the last sample",
        ),
        Column(
            "network_sent_bytes_per_second",
            "REAL",
            "gauge",
            "all interfaces but loopback, since the last sample",
        ),
        Column("cpu_temperature_celsius", "REAL", "gauge", "hottest sensor of the processor; NULL = none"),
    ),
    (Index("idx_host_metrics_timestamp", "timestamp DESC"),),
)

_CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "acpitz")
"""Driver names of processor sensors, the most telling first."""


class HostSource:
    """Reads the machine. Every rate is a difference of raw counters that this object keeps.

    Args:
        disk: gives the space of the models directory's partition.
    """

    name = "host"
    tables = (HOST_METRICS,)
    defaults: Mapping[str, SqlValue] = {"swap_usage": None}

    def __init__(self, disk: DiskSource) -> None:
        self._disk = disk
        self._cpu: tuple[float, float] | None = None
        self._counters: dict[str, float] = {}
        self._counted_at = 0.0
        self._has_cpu_sensor = True

    def read(self, tick: Tick) -> Reading[None]:
        """Read everything once; a rate is NULL on the first reading."""
        swap = psutil.swap_memory()
        values: dict[str, SqlValue] = {
            "timestamp": tick.timestamp,
            "cpu_usage": self._cpu_usage(),
            **dict(zip(("load_1m", "load_5m", "load_15m"), psutil.getloadavg(), strict=True)),
            **_memory(),
            "swap_total_mb": swap.total / BYTES_PER_MB,
            "swap_used_mb": swap.used / BYTES_PER_MB,
            "swap_usage": swap.percent,
            **self._rates(swap),
            "cpu_temperature_celsius": self._temperature(),
            **self._disk_space(tick),
        }
        return Reading(
            None, rows=((HOST_METRICS, HOST_METRICS.row(values)),), snapshot={"swap_usage": swap.percent}
        )

    def close(self) -> None:
        """Nothing is held open."""

    def _cpu_usage(self) -> float | None:
        before, self._cpu = self._cpu, _busy_and_total(psutil.cpu_times())
        if before is None or self._cpu[1] <= before[1]:
            return None
        share = (self._cpu[0] - before[0]) / (self._cpu[1] - before[1])
        return min(100.0, max(0.0, 100 * share))  # iowait may run backwards by a tick of the clock

    def _rates(self, swap: Any) -> dict[str, SqlValue]:
        now = time.monotonic()
        counters = {
            "swap_in_bytes_per_second": swap.sin,
            "swap_out_bytes_per_second": swap.sout,
            **_traffic(
                psutil.disk_io_counters(nowrap=False), psutil.net_io_counters(pernic=True, nowrap=False)
            ),
        }
        elapsed = now - self._counted_at
        rates: dict[str, SqlValue] = {
            name: (value - self._counters[name]) / elapsed
            for name, value in counters.items()
            if value >= self._counters.get(name, float("inf")) and elapsed > 0
        }  # a counter that fell was reset (a disk or interface went away): its rate is not known
        self._counters, self._counted_at = counters, now
        return rates

    def _temperature(self) -> float | None:
        if not self._has_cpu_sensor:
            return None
        sensors = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
        for name in _CPU_SENSORS:
            if found := [sensor.current for sensor in sensors.get(name, ()) if sensor.current > 0]:
                return max(found)
        self._has_cpu_sensor = False  # sensors do not appear later: looking costs, so look once
        return None

    def _disk_space(self, tick: Tick) -> dict[str, SqlValue]:
        reading = tick.reading_of(self._disk)
        if reading is None:
            return {}
        space = reading.detail
        return {
            "disk_total_mb": space.total_mb,
            "disk_used_mb": space.used_mb,
            "disk_free_mb": space.free_mb,
            "disk_usage": space.usage,
        }


def _memory() -> dict[str, SqlValue]:
    memory = psutil.virtual_memory()
    return {
        "memory_total_mb": memory.total / BYTES_PER_MB,
        "memory_available_mb": memory.available / BYTES_PER_MB,
        "memory_usage": memory.percent,
    }


def _busy_and_total(times: Any) -> tuple[float, float]:
    """Seconds since boot, summed over the cores. Guest time is in user time already."""
    total = sum(times) - getattr(times, "guest", 0) - getattr(times, "guest_nice", 0)
    return total - times.idle - getattr(times, "iowait", 0), total


def _traffic(disks: Any, interfaces: Any) -> dict[str, float]:
    """Byte counters; a machine without disks or without interfaces has none."""
    counters: dict[str, float] = {}
    if disks:
        counters["disk_read_bytes_per_second"] = disks.read_bytes
        counters["disk_write_bytes_per_second"] = disks.write_bytes
    if outward := [counted for name, counted in interfaces.items() if name != "lo"]:
        counters["network_received_bytes_per_second"] = sum(counted.bytes_recv for counted in outward)
        counters["network_sent_bytes_per_second"] = sum(counted.bytes_sent for counted in outward)
    return counters
