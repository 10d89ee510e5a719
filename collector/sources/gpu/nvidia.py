"""NVIDIA GPUs, read through NVML."""

import _ctypes
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from collector.errors import CollectorError, SourceAbsent, SourceFailed
from collector.health import OK, State
from collector.schema import AUTOMATIC_ID, BYTES_PER_MB, Column, Index, Row, SqlValue, Table
from collector.sources.base import Reading, Tick

GPU_METRICS = Table(
    "gpu_metrics",
    "One row a sample and GPU. NULL = this GPU or its driver does not tell.",
    (
        Column("id", AUTOMATIC_ID, "key", "ascending"),
        Column("timestamp", "INTEGER NOT NULL", "time", "Unix seconds of the sample"),
        Column(
            "gpu_index",
            "INTEGER NOT NULL",
            "label",
            "number that the driver gives it, from 0; may change at a boot",
        ),
        Column("uuid", "TEXT", "label", "its lasting identity, GPU-…"),
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
        Column("memory_free_mb", "REAL", "gauge", "memory that programs can still get, MB"),
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
    ),
    (Index("idx_gpu_metrics_timestamp", "timestamp DESC"),),
)

RETRY_SECONDS = 60
"""How often a new NVML session is tried while there is none, or while one of its GPUs is missing."""

_NOT_AVAILABLE = (2**32 - 1, 2**64 - 1)
"""Numbers by which NVML says that it has none."""

_GPU_SENSOR, _GRAPHICS_CLOCK, _MEMORY_CLOCK = 0, 0, 2

_NUMBERS: tuple[tuple[str, str, tuple[int, ...], int], ...] = (
    ("temperature_celsius", "nvmlDeviceGetTemperature", (_GPU_SENSOR,), 1),
    ("fan_usage", "nvmlDeviceGetFanSpeed", (), 1),
    ("power_watts", "nvmlDeviceGetPowerUsage", (), 1000),
    ("power_limit_watts", "nvmlDeviceGetEnforcedPowerLimit", (), 1000),
    ("graphics_clock_mhz", "nvmlDeviceGetClockInfo", (_GRAPHICS_CLOCK,), 1),
    ("memory_clock_mhz", "nvmlDeviceGetClockInfo", (_MEMORY_CLOCK,), 1),
    ("energy_joules", "nvmlDeviceGetTotalEnergyConsumption", (), 1000),
)
"""Column, the NVML function that gives it, its arguments, and how many of NVML's units make one of ours."""

_PROCESS_LISTS = ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetGraphicsRunningProcesses_v3")


class GpuSource:
    """Reads every NVIDIA GPU; a reading's detail is GPU memory in MB by process id, summed over the GPUs.

    A process whose memory the driver does not tell is missing from the detail. Where reading fails, NVML is
    started afresh: at the next reading, then every `retry_seconds`.

    Args:
        retry_seconds: the least time between two starts of NVML.
        clock: seconds, ever increasing.
    """

    name = "gpu"
    tables = (GPU_METRICS,)
    defaults: Mapping[str, SqlValue] = {"gpu_usage": 0, "gpu_memory_used": 0, "gpu_memory_total": 0}

    def __init__(
        self, retry_seconds: float = RETRY_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._retry_seconds = retry_seconds
        self._clock = clock
        self._nvml: Any = None
        self._gpus: list[_Gpu] = []
        self._started_at = float("-inf")
        self._failure: CollectorError | None = None

    def read(self, tick: Tick) -> Reading[Mapping[int, float]]:
        """Ask every GPU for everything.

        Raises:
            SourceAbsent: no driver, or no GPU.
            SourceFailed: the driver does not answer, or none of the GPUs does.
        """
        import pynvml  # 3 MB: only where GPUs are read

        self._nvml = pynvml
        if self._failure and not self._may_start():
            raise self._failure.with_traceback(None)
        try:
            self._keep_session()
            seen = [one for gpu in self._gpus if (one := gpu.read())]
        except pynvml.NVMLError as error:
            self._failure = _explain(error)
            self.close()
            raise self._failure from None
        self._failure = None
        return _reading(tick, seen, self._faults())

    def close(self) -> None:
        """End the NVML session and unload its library."""
        self._gpus = []
        if self._nvml and self._nvml.nvmlLib:
            with suppress(self._nvml.NVMLError):  # a driver that is gone need not be told
                self._nvml.nvmlShutdown()
            _unload_library(self._nvml)

    def _keep_session(self) -> None:
        """Go on with the session; start one where there is none, a GPU failed, or their number changed."""
        nvml = self._nvml
        stale = bool(self._faults()) and self._may_start()
        if self._gpus and not stale and nvml.nvmlDeviceGetCount() == len(self._gpus):
            return
        self.close()
        self._started_at = self._clock()
        nvml.nvmlInit()
        self._gpus = [_Gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
        if not self._gpus:
            raise nvml.NVMLError(nvml.NVML_ERROR_GPU_NOT_FOUND)

    def _may_start(self) -> bool:
        return self._clock() - self._started_at >= self._retry_seconds

    def _faults(self) -> list[str]:
        return [f"{gpu.title}: {gpu.fault}" for gpu in self._gpus if gpu.fault]


@dataclass(frozen=True, slots=True)
class _Seen:
    """One GPU at one moment: columns of `gpu_metrics`, and bytes by process id (None = not told)."""

    values: dict[str, SqlValue]
    process_bytes: dict[int, int | None]


class _Gpu:
    """One GPU in one NVML session.

    Args:
        nvml: the module pynvml.
        index: the GPU's number.
    """

    def __init__(self, nvml: Any, index: int) -> None:
        self._nvml = nvml
        self._index = index
        self._handle: Any = None
        self._identity: dict[str, SqlValue] = {"gpu_index": index}
        self._doubts: list[Exception] = []
        self.fault = ""
        """Why it gives no reading any more in this session; empty while it does."""

    @property
    def title(self) -> str:
        """How the user knows it: its number, and its name where it told one."""
        name = self._identity.get("name")
        return f"GPU {self._index} ({name!s})" if name else f"GPU {self._index}"

    def read(self) -> _Seen | None:
        """Ask everything; None where this GPU does not answer, so that it costs only itself.

        Raises:
            NVMLError: the whole driver is gone.
        """
        if self.fault:
            return None
        try:
            return self._read()
        except self._nvml.NVMLError as error:
            if _driver_is_gone(error):
                raise
            self.fault = str(error)
            return None

    def _read(self) -> _Seen:
        if self._handle is None:
            self._meet()
        self._doubts.clear()
        measured = {**self._usage(), **self._memory(), **self._numbers(), **self._clock_limits()}
        if self._doubts and all(value is None for value in measured.values()):
            raise self._doubts[-1]
        return _Seen(self._identity | measured, self._process_bytes())

    def _meet(self) -> None:
        self._handle = self._nvml.nvmlDeviceGetHandleByIndex(self._index)
        self._identity |= {"uuid": self._ask("nvmlDeviceGetUUID"), "name": self._ask("nvmlDeviceGetName")}

    def _ask(self, function: str, *arguments: int) -> Any:
        """What NVML answers, or None where it does not tell just this.

        Raises:
            NVMLError: the GPU or the driver is gone.
        """
        nvml = self._nvml
        try:
            answer = getattr(nvml, function)(self._handle, *arguments)
        except nvml.NVMLError_NotSupported:
            return None
        except nvml.NVMLError as error:
            if error.value == nvml.NVML_ERROR_GPU_IS_LOST or _driver_is_gone(error):
                raise
            self._doubts.append(error)  # a GPU that is well may still refuse one value
            return None
        return _available(answer)

    def _usage(self) -> dict[str, SqlValue]:
        rates = self._ask("nvmlDeviceGetUtilizationRates")
        if not rates:
            return {}
        return {"gpu_usage": _available(rates.gpu), "memory_bandwidth_usage": _available(rates.memory)}

    def _memory(self) -> dict[str, SqlValue]:
        """As nvidia-smi shows it; drivers before 510 count what they reserve as used."""
        version_2 = self._nvml.nvmlMemory_v2
        memory = self._ask("nvmlDeviceGetMemoryInfo", version_2) or self._ask("nvmlDeviceGetMemoryInfo")
        if not memory or not memory.total:  # a GPU without memory of its own tells nothing, or 0
            return {}
        return {
            "memory_used_mb": _scaled(memory.used, BYTES_PER_MB),
            "memory_free_mb": _scaled(memory.free, BYTES_PER_MB),
            "memory_total_mb": _scaled(memory.total, BYTES_PER_MB),
        }

    def _numbers(self) -> dict[str, SqlValue]:
        return {
            column: _scaled(self._ask(function, *arguments), divisor)
            for column, function, arguments, divisor in _NUMBERS
        }

    def _clock_limits(self) -> dict[str, SqlValue]:
        state = self._ask("nvmlDeviceGetPerformanceState")
        return {
            "performance_state": None if state == self._nvml.NVML_PSTATE_UNKNOWN else state,
            "throttle_reasons": self._ask("nvmlDeviceGetCurrentClocksEventReasons"),
        }

    def _process_bytes(self) -> dict[int, int | None]:
        """Memory by process id. A process that computes and draws stands in both lists with one amount."""
        memory: dict[int, int | None] = {}
        for function in _PROCESS_LISTS:
            processes = self._ask(function) or ()
            for pid, used in _sums((process.pid, process.usedGpuMemory) for process in processes).items():
                memory[pid] = max(
                    (amount for amount in (memory.get(pid), used) if amount is not None), default=None
                )
        return memory


def _available(answer: Any) -> Any:
    return None if answer in _NOT_AVAILABLE else answer


def _scaled(answer: int | None, divisor: int) -> float | None:
    return None if answer is None or answer in _NOT_AVAILABLE else answer / divisor


def _sums(amounts: Iterable[tuple[int, int | None]]) -> dict[int, int | None]:
    """Sums by process id; a sum of which one part is not known is not known."""
    sums: dict[int, int | None] = {}
    for pid, amount in amounts:
        before = sums.get(pid, 0)
        sums[pid] = None if before is None or amount is None else before + amount
    return sums


def _reading(tick: Tick, seen: list[_Seen], faults: list[str]) -> Reading[Mapping[int, float]]:
    advice = "; see what `dmesg` says of it. It is looked for again by itself."
    if not seen:
        raise SourceFailed("; ".join(faults) + advice)
    memory = _sums(item for one in seen for item in one.process_bytes.items())
    return Reading(
        {pid: used / BYTES_PER_MB for pid, used in memory.items() if used is not None},
        rows=tuple((GPU_METRICS, _row(tick, one)) for one in seen),
        snapshot=_snapshot([one.values for one in seen]),
        state=State("degraded", "; ".join(faults) + advice, level="warning") if faults else OK,
    )


def _row(tick: Tick, seen: _Seen) -> Row:
    return GPU_METRICS.row({"timestamp": tick.timestamp, **seen.values})


def _snapshot(gpus: list[dict[str, SqlValue]]) -> dict[str, SqlValue]:
    """The GPU columns of `metrics`: over those GPUs that tell, NULL where none does."""

    def over(function: Callable[[list[Any]], float], column: str) -> float | None:
        told = [values[column] for values in gpus if values.get(column) is not None]
        return function(told) if told else None

    return {
        "gpu_usage": over(fmean, "gpu_usage"),
        "gpu_memory_used": over(sum, "memory_used_mb"),
        "gpu_memory_total": over(sum, "memory_total_mb"),
    }


def _driver_is_gone(error: Any) -> bool:
    import pynvml

    return error.value in (
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    )


def _explain(error: Any) -> CollectorError:
    """What an NVMLError means for all GPUs, and what to do."""
    import pynvml

    match error.value:
        case pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
            return SourceAbsent("no NVIDIA driver is installed here (libnvidia-ml.so.1 cannot be loaded)")
        case pynvml.NVML_ERROR_GPU_NOT_FOUND:
            return SourceAbsent("the NVIDIA driver is loaded and finds no GPU")
        case pynvml.NVML_ERROR_DRIVER_NOT_LOADED:
            return SourceAbsent(
                "the NVIDIA driver is installed but not loaded: load it with `modprobe nvidia`, and see "
                "`dmesg` if that fails; in a container, hand the GPUs in"
            )
        case pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
            return SourceFailed(
                "the NVIDIA driver was updated while its former version is still loaded: reboot, or stop all "
                "that uses the GPU and reload the kernel module `nvidia`. The collector may run on"
            )
        case pynvml.NVML_ERROR_NO_PERMISSION:
            return SourceFailed("the NVIDIA driver refuses this user: let it read and write /dev/nvidia*")
    return SourceFailed(f"the NVIDIA driver does not answer ({error}): see what `nvidia-smi` and `dmesg` say")


def _unload_library(nvml: Any) -> None:
    """Make the next session load the library from its file, which an update may have replaced.

    pynvml never lets go of it, and as long as anyone holds it the dynamic linker gives out the same one.
    """
    library, nvml.nvmlLib = nvml.nvmlLib, None
    nvml._nvmlGetFunctionPointer_cache.clear()  # noqa: SLF001 - its pointers lead into the library
    _ctypes.dlclose(library._handle)  # noqa: SLF001 - ctypes has no public way to unload
