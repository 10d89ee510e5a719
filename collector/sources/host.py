"""The source of the machine: processor, memory, swap, disk, network, temperature."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil

from collector.schema import AUTOMATIC_ID, BYTES_PER_MB, Column, Index, SqlValue, Table
from collector.sources.base import Reading, Tick
from collector.sources.disk import DiskSource
from collector.sources.traffic import Traffic, TrafficDevices, read_or_none, read_table

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
        traffic: by the column of its rate.
    """

    read_at: float
    cpu_busy: float
    cpu_total: float
    traffic: Mapping[str, Traffic]


class HostSource:
    """The source of `host_metrics`. It stores the counters of the previous sample, to compute rates.

    Each column is read by itself: what cannot be read is NULL, and the others have their values. Examples: a
    container without /proc/diskstats, a kernel without /proc/vmstat.

    Args:
        disk: the source of the space on the partition of the models directory.
    """

    name = "host"
    tables = (HOST_METRICS,)
    defaults: Mapping[str, SqlValue] = {"swap_usage": None}

    def __init__(self, disk: DiskSource) -> None:
        self._disk = disk
        self._before: _Counters | None = None
        self._temperature = _CpuTemperature()
        self._devices = TrafficDevices()

    def read(self, tick: Tick) -> Reading[None]:
        """Read every value once; rates are NULL in the first reading."""
        before = self._before
        busy, total = read_or_none(_busy_and_total) or (0.0, 0.0)
        traffic = self._devices.counters()
        now = _Counters(time.clock_gettime(time.CLOCK_BOOTTIME), busy, total, traffic)
        swap = read_or_none(_swap) or {}
        values: dict[str, SqlValue] = {
            "timestamp": tick.timestamp,
            **(read_or_none(_load) or {}),
            **(read_or_none(_memory) or {}),
            **swap,
            "cpu_temperature_celsius": read_or_none(self._temperature.read),
            **self._disk_space(tick),
            **(_rates(before, now) if before else {}),
        }
        self._before = now
        snapshot = {"swap_usage": swap.get("swap_usage")}
        return Reading(None, rows=((HOST_METRICS, HOST_METRICS.row(values)),), snapshot=snapshot)

    def close(self) -> None:
        """Do nothing: nothing is kept open."""

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


class _CpuTemperature:
    """The hottest sensor of the processor."""

    def __init__(self) -> None:
        self._next_search = 0.0

    def read(self) -> float | None:
        """Return degrees Celsius; None if there is no sensor, or it reads 0.

        Listing the sensors of a machine that has none of the processor is slow, so it is repeated only once a
        minute: a driver may be loaded later.
        """
        if time.monotonic() < self._next_search:
            return None
        sensors = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
        present = [sensors[name] for name in _CPU_SENSORS if sensors.get(name)]
        if not present:
            self._next_search = time.monotonic() + _SENSOR_SEARCH_SECONDS
        for entries in present:
            if found := [sensor.current for sensor in entries if sensor.current > 0]:
                return max(found)
        return None


_SENSOR_SEARCH_SECONDS = 60


def _load() -> dict[str, SqlValue]:
    """Return the columns of the load."""
    return dict(zip(("load_1m", "load_5m", "load_15m"), psutil.getloadavg(), strict=True))


def _memory() -> dict[str, SqlValue]:
    """Return the columns of the memory."""
    memory = psutil.virtual_memory()
    return {
        "memory_total_mb": memory.total / BYTES_PER_MB,
        "memory_available_mb": memory.available / BYTES_PER_MB,
        "memory_usage": memory.percent,
    }


def _swap() -> dict[str, SqlValue]:
    """Return the columns of the swap space.

    psutil's function reads /proc/vmstat as well, and prints a warning where that is missing.
    """
    values = read_table("meminfo")
    total, free = values["SwapTotal"], values["SwapFree"]
    return {
        "swap_total_mb": total / 1024,
        "swap_used_mb": (total - free) / 1024,
        "swap_usage": round(100 * (total - free) / total, 1) if total else 0.0,
    }


def _rates(before: _Counters, now: _Counters) -> dict[str, SqlValue]:
    """Return the columns that are computed from the counters of two samples.

    A rate is NULL if its counter fell, if it counts other devices than in the previous sample, because a disk
    or a network interface has come or gone, and if it was not there in the previous sample.
    """
    elapsed = now.read_at - before.read_at
    if elapsed <= 0:
        return {}
    rates: dict[str, SqlValue] = {
        name: (counter.bytes - last.bytes) / elapsed
        for name, counter in now.traffic.items()
        if (last := before.traffic.get(name)) and last.devices == counter.devices
        if counter.bytes >= last.bytes
    }
    if now.cpu_total > before.cpu_total:
        share = (now.cpu_busy - before.cpu_busy) / (now.cpu_total - before.cpu_total)
        rates["cpu_usage"] = min(100.0, max(0.0, 100 * share))  # iowait of the kernel may fall by 10 ms
    return {**rates, "elapsed_seconds": elapsed}


def _busy_and_total() -> tuple[float, float]:
    """Return busy and total seconds, summed over the cores. Guest time is already part of user time."""
    times: Any = psutil.cpu_times()
    total = sum(times) - getattr(times, "guest", 0) - getattr(times, "guest_nice", 0)
    return total - times.idle - getattr(times, "iowait", 0), total
