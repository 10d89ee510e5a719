"""The source of the machine: processor, memory, swap, disk, network, temperature."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil

from collector.schema import AUTOMATIC_ID, BYTES_PER_MB, Column, Index, SqlValue, Table
from collector.sources.base import Reading, Tick
from collector.sources.disk import DiskSource

HOST_METRICS = Table(
    "host_metrics",
    "One row per sample: the whole machine.",
    (
        Column("id", AUTOMATIC_ID, "key", "ascending"),
        Column("timestamp", "INTEGER NOT NULL", "time", "Unix seconds of the sample"),
        Column(
            "cpu_usage", "REAL", "gauge", "busy time of all cores since the previous sample, percent (0-100)"
        ),
        Column("load_1m", "REAL", "gauge", "load average of 1 minute"),
        Column("load_5m", "REAL", "gauge", "load average of 5 minutes"),
        Column("load_15m", "REAL", "gauge", "load average of 15 minutes"),
        Column("memory_total_mb", "REAL", "gauge", "RAM, MB of 1,048,576 bytes"),
        Column("memory_available_mb", "REAL", "gauge", "RAM that programs can still allocate, MB"),
        Column("memory_usage", "REAL", "gauge", "RAM that is not available, percent (0-100)"),
        Column("swap_total_mb", "REAL", "gauge", "swap, MB"),
        Column("swap_used_mb", "REAL", "gauge", "swap in use, MB"),
        Column("swap_usage", "REAL", "gauge", "swap in use, percent (0-100); 0 without swap"),
        Column(
            "swap_in_bytes_per_second",
            "REAL",
            "gauge",
            "bytes per second read from swap since the previous sample",
        ),
        Column(
            "swap_out_bytes_per_second",
            "REAL",
            "gauge",
            "bytes per second written to swap since the previous sample",
        ),
        Column("disk_total_mb", "REAL", "gauge", "size of the partition of the models directory, MB"),
        Column("disk_used_mb", "REAL", "gauge", "used space on it, MB"),
        Column(
            "disk_free_mb",
            "REAL",
            "gauge",
            "space on it that users without root privileges can still use, MB",
        ),
        Column("disk_usage", "REAL", "gauge", "used space on it, percent (0-100)"),
        Column("disk_read_bytes_per_second", "REAL", "gauge", "all disks, since the previous sample"),
        Column("disk_write_bytes_per_second", "REAL", "gauge", "all disks, since the previous sample"),
        Column(
            "network_received_bytes_per_second",
            "REAL",
            "gauge",
            "all interfaces except loopback, since the previous sample",
        ),
        Column(
            "network_sent_bytes_per_second",
            "REAL",
            "gauge",
            "all interfaces except loopback, since the previous sample",
        ),
        Column(
            "cpu_temperature_celsius", "REAL", "gauge", "hottest sensor of the processor; NULL = it has none"
        ),
        Column(
            "elapsed_seconds",
            "REAL",
            "gauge",
            "seconds since the previous sample, by a monotonic clock; NULL in the first sample after a start",
        ),
    ),
    (Index("idx_host_metrics_timestamp", "timestamp DESC"),),
)

_CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "acpitz")
"""Driver names of processor sensors, the most accurate first."""


@dataclass(frozen=True, slots=True)
class _Counters:
    """Counters of the kernel, which only grow.

    Args:
        read_at: seconds since boot, including the time in which the machine was suspended.
        cpu_busy: busy seconds, summed over the cores.
        cpu_total: all seconds, summed over the cores.
        traffic: bytes, by the column of their rate.
    """

    read_at: float
    cpu_busy: float
    cpu_total: float
    traffic: Mapping[str, float]


class HostSource:
    """The source of `host_metrics`. It stores the counters of the previous sample, to compute rates.

    Args:
        disk: the source of the space on the partition of the models directory.
    """

    name = "host"
    tables = (HOST_METRICS,)
    defaults: Mapping[str, SqlValue] = {"swap_usage": None}

    def __init__(self, disk: DiskSource) -> None:
        self._disk = disk
        self._before: _Counters | None = None
        self._has_cpu_sensor = True

    def read(self, tick: Tick) -> Reading[None]:
        """Read every value once; rates are NULL in the first reading."""
        before, swap = self._before, psutil.swap_memory()
        busy, total = _busy_and_total(psutil.cpu_times())
        now = _Counters(time.clock_gettime(time.CLOCK_BOOTTIME), busy, total, _traffic(swap))
        memory, load = psutil.virtual_memory(), psutil.getloadavg()
        values: dict[str, SqlValue] = {
            "timestamp": tick.timestamp,
            "load_1m": load[0],
            "load_5m": load[1],
            "load_15m": load[2],
            "memory_total_mb": memory.total / BYTES_PER_MB,
            "memory_available_mb": memory.available / BYTES_PER_MB,
            "memory_usage": memory.percent,
            "swap_total_mb": swap.total / BYTES_PER_MB,
            "swap_used_mb": swap.used / BYTES_PER_MB,
            "swap_usage": swap.percent,
            "cpu_temperature_celsius": self._temperature(),
            **self._disk_space(tick),
            **(_rates(before, now) if before else {}),
        }
        self._before = now
        return Reading(
            None, rows=((HOST_METRICS, HOST_METRICS.row(values)),), snapshot={"swap_usage": swap.percent}
        )

    def close(self) -> None:
        """Do nothing: nothing is kept open."""

    def _temperature(self) -> float | None:
        if not self._has_cpu_sensor:
            return None
        sensors = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
        for name in _CPU_SENSORS:
            if found := [sensor.current for sensor in sensors.get(name, ()) if sensor.current > 0]:
                return max(found)
        self._has_cpu_sensor = False  # listing sensors is slow, and none appears later
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


def _rates(before: _Counters, now: _Counters) -> dict[str, SqlValue]:
    """Return the columns that are computed from the counters of two samples.

    A rate is NULL if its counter fell, for example because a disk or a network interface was removed and its
    bytes are no longer in the sum, and if the counter was not there in the previous sample.
    """
    elapsed = now.read_at - before.read_at
    if elapsed <= 0:
        return {}
    rates: dict[str, SqlValue] = {
        name: (value - before.traffic[name]) / elapsed
        for name, value in now.traffic.items()
        if value >= before.traffic.get(name, float("inf"))
    }
    if now.cpu_total > before.cpu_total:
        share = (now.cpu_busy - before.cpu_busy) / (now.cpu_total - before.cpu_total)
        rates["cpu_usage"] = min(100.0, max(0.0, 100 * share))  # iowait of the kernel may fall by 10 ms
    return {**rates, "elapsed_seconds": elapsed}


def _busy_and_total(times: Any) -> tuple[float, float]:
    """Return busy and total seconds, summed over the cores. Guest time is already part of user time."""
    total = sum(times) - getattr(times, "guest", 0) - getattr(times, "guest_nice", 0)
    return total - times.idle - getattr(times, "iowait", 0), total


def _traffic(swap: Any) -> dict[str, float]:
    """Return byte counters by the column of their rate; a machine without disks or interfaces has fewer."""
    counters: dict[str, float] = {
        "swap_in_bytes_per_second": swap.sin,
        "swap_out_bytes_per_second": swap.sout,
    }
    if disks := psutil.disk_io_counters(nowrap=False):
        counters["disk_read_bytes_per_second"] = disks.read_bytes
        counters["disk_write_bytes_per_second"] = disks.write_bytes
    interfaces = psutil.net_io_counters(pernic=True, nowrap=False)
    if external := [interface for name, interface in interfaces.items() if name != "lo"]:
        counters["network_received_bytes_per_second"] = sum(interface.bytes_recv for interface in external)
        counters["network_sent_bytes_per_second"] = sum(interface.bytes_sent for interface in external)
    return counters
