"""The source `gpu`: the table, and the sums over the GPUs of all vendors."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from collector.errors import DatabaseError, SourceAbsent, SourceFailed
from collector.health import OK, State
from collector.schema import AUTOMATIC_ID, BYTES_PER_MB, Column, Index, Row, SqlValue, Table
from collector.sources.base import Query, Reading, Tick
from collector.sources.gpu.nvidia import NvidiaReader
from collector.sources.gpu.reader import GpuIdentity, GpuReader, GpuReading, sum_by_process

__all__ = ["GPU_METRICS", "GpuDetail", "GpuIdentity", "GpuSource", "energy_used"]

READERS: tuple[Callable[[], GpuReader], ...] = (NvidiaReader,)
"""One class for each vendor."""

GPU_METRICS = Table(
    "gpu_metrics",
    "One row per sample and GPU. NULL = the GPU or its driver does not report it.",
    (
        Column("id", AUTOMATIC_ID, "key", "ascending"),
        Column("timestamp", "INTEGER NOT NULL", "time", "Unix seconds of the sample"),
        Column(
            "gpu_index",
            "INTEGER NOT NULL",
            "label",
            "the driver's number of the GPU, from 0; may change at a boot, and GPUs of two vendors may have "
            "the same one: `uuid` identifies a GPU",
        ),
        Column("uuid", "TEXT", "label", "identifier that stays the same, GPU-…"),
        Column("name", "TEXT", "label", "product name"),
        Column(
            "gpu_usage",
            "REAL",
            "gauge",
            "share of time in which it computed, percent (0-100); NULL under MIG",
        ),
        Column(
            "memory_bandwidth_usage",
            "REAL",
            "gauge",
            "share of time in which its memory was accessed, percent (0-100)",
        ),
        Column(
            "memory_used_mb",
            "REAL",
            "gauge",
            "memory in use, MB of 1,048,576 bytes; NULL where it shares the host's",
        ),
        Column("memory_free_mb", "REAL", "gauge", "memory that programs can still allocate, MB"),
        Column(
            "memory_total_mb", "REAL", "gauge", "all its memory, MB: used, free, and what the driver reserves"
        ),
        Column("temperature_celsius", "REAL", "gauge", "of the chip, degrees Celsius"),
        Column(
            "fan_usage",
            "REAL",
            "gauge",
            "intended fan speed, percent of the highest; NULL without a fan of its own",
        ),
        Column("power_watts", "REAL", "gauge", "power drawn by the whole board, watts"),
        Column("power_limit_watts", "REAL", "gauge", "power limit in force, watts"),
        Column("graphics_clock_mhz", "REAL", "gauge", "clock of the processors, MHz"),
        Column("memory_clock_mhz", "REAL", "gauge", "clock of the memory, MHz"),
        Column("energy_joules", "REAL", "counter", "energy used since the driver was loaded, joules"),
        Column("performance_state", "INTEGER", "state", "0 (fastest) to 15 (slowest)"),
        Column(
            "throttle_reasons",
            "INTEGER",
            "bitmask",
            "why the clocks are low, a sum: 0 they are not, 1 idle, 2 set by a user, 4 power limit, "
            "8 hardware, 16 in step with others, 32 and 64 too hot, 128 power supply, 256 display",
        ),
        Column(
            "vendor",
            "TEXT",
            "label",
            "nvidia, amd or intel; NULL = a row of version 0.1.0, which read NVIDIA only",
        ),
        Column("bus_address", "TEXT", "label", "PCI address, lower case, such as 0000:01:00.0"),
        Column(
            "energy_used_joules",
            "REAL",
            "increment",
            "energy used since the last row of this GPU that has `energy_joules`, joules; NULL = not known, "
            "as in the first row of a GPU",
        ),
    ),
    (Index("idx_gpu_metrics_timestamp", "timestamp DESC"),),
)

ENERGY_GAP_SECONDS = 3600
"""The longest time between two rows for which stored rows still say how much energy was used."""


@dataclass(frozen=True, slots=True)
class GpuDetail:
    """What other parts of the collector use of a reading.

    Args:
        process_memory_mb: GPU memory in MB by process id, summed over all GPUs. A process is missing where
            a driver does not report its memory.
        gpus: the GPUs that were read, in the order of the rows.
    """

    process_memory_mb: Mapping[int, float]
    gpus: tuple[GpuIdentity, ...]


def _no_rows(_statement: str, _parameters: Sequence[object]) -> list[dict[str, Any]]:
    return []


class GpuSource:
    """All GPUs of this machine.

    Args:
        query: reads the database: the energy counters that were stored before this start of the collector.
        readers: one for each vendor; all vendors if None.
    """

    name = "gpu"
    tables = (GPU_METRICS,)
    defaults: Mapping[str, SqlValue] = {"gpu_usage": 0, "gpu_memory_used": 0, "gpu_memory_total": 0}

    def __init__(self, query: Query = _no_rows, readers: Sequence[GpuReader] | None = None) -> None:
        self._query = query
        self._readers = [create() for create in READERS] if readers is None else list(readers)
        self._energy: dict[str, float] = {}

    def read(self, tick: Tick) -> Reading[GpuDetail]:
        """Read every GPU.

        Raises:
            SourceAbsent: no vendor has a driver and a GPU here.
            SourceFailed: a driver does not answer, or none of its GPUs, and no other vendor has a GPU here.
        """
        readings: list[GpuReading] = []
        absences, faults = [], []
        for reader in self._readers:
            try:
                readings += reader.read()
            except SourceAbsent as absence:
                absences.append(str(absence))
            except SourceFailed as failure:
                faults.append(str(failure))
            else:
                faults += [reader.fault] if reader.fault else []
        if not readings:
            raise SourceFailed("; ".join(faults)) if faults else SourceAbsent("; ".join(absences))
        memory = sum_by_process(item for reading in readings for item in reading.process_bytes.items())
        return Reading(
            GpuDetail(
                {pid: used / BYTES_PER_MB for pid, used in memory.items() if used is not None},
                tuple(reading.identity for reading in readings),
            ),
            rows=tuple((GPU_METRICS, self._row(tick.timestamp, reading)) for reading in readings),
            snapshot=_snapshot([reading.values for reading in readings]),
            state=State("degraded", "; ".join(faults), level="warning") if faults else OK,
        )

    def close(self) -> None:
        """Release the drivers' libraries."""
        for reader in self._readers:
            reader.close()

    def _row(self, timestamp: int, reading: GpuReading) -> Row:
        gpu = reading.identity
        return GPU_METRICS.row(
            {
                "timestamp": timestamp,
                "gpu_index": gpu.index,
                "uuid": gpu.uuid,
                "name": gpu.name,
                "vendor": gpu.vendor,
                "bus_address": gpu.bus_address,
                **reading.values,
                "energy_used_joules": self._energy_used(timestamp, reading),
            }
        )

    def _energy_used(self, timestamp: int, reading: GpuReading) -> float | None:
        """Return the joules used since the last row of this GPU with a known counter.

        Within this process only the counter counts, not the clock: setting the system's clock changes
        nothing. The first row of a GPU is compared with its newest stored row.
        """
        uuid, joules = reading.identity.uuid, reading.values.get("energy_joules")
        if uuid is None or not isinstance(joules, int | float):
            return None
        before, self._energy[uuid] = self._energy.get(uuid), joules
        if before is not None:
            return _increment(before, joules)
        return energy_used(self._stored_energy(uuid, timestamp), (timestamp, joules))

    def _stored_energy(self, uuid: str, timestamp: int) -> tuple[int, float] | None:
        """Return timestamp and energy counter of a GPU's newest stored row; None if too old or unreadable."""
        with suppress(DatabaseError):
            rows = self._query(
                "SELECT timestamp, energy_joules FROM gpu_metrics WHERE timestamp >= ? AND uuid = ? "
                "ORDER BY timestamp DESC, id DESC LIMIT 1",
                (timestamp - ENERGY_GAP_SECONDS, uuid),
            )
            if rows and rows[0]["energy_joules"] is not None:
                return rows[0]["timestamp"], rows[0]["energy_joules"]
        return None


def energy_used(before: tuple[int, float] | None, now: tuple[int, float]) -> float | None:
    """Return the joules that a GPU used between two stored rows.

    Args:
        before: Unix seconds and energy counter (joules) of the GPU's previous row; None = there is none, or
            its counter is not known.
        now: the same of the row itself.

    Returns:
        None if the previous row is more than an hour older: the energy cannot be assigned to an hour. None
        also if it is younger: it was stored before the clock was set back, and its age is not known.
    """
    if before is None or not 0 <= now[0] - before[0] <= ENERGY_GAP_SECONDS:
        return None
    return _increment(before[1], now[1])


def _increment(before: float, now: float) -> float:
    """Return the growth of a counter; one that fell began again at 0, as after a reload of the driver."""
    return now - before if now >= before else now


def _snapshot(gpus: Sequence[Mapping[str, SqlValue]]) -> dict[str, SqlValue]:
    """Return the GPU columns of `metrics`, over the GPUs that report the value; NULL if none does."""

    def over(function: Callable[[list[Any]], float], column: str) -> float | None:
        known = [values[column] for values in gpus if values.get(column) is not None]
        return function(known) if known else None

    return {
        "gpu_usage": over(fmean, "gpu_usage"),
        "gpu_memory_used": over(sum, "memory_used_mb"),
        "gpu_memory_total": over(sum, "memory_total_mb"),
    }
