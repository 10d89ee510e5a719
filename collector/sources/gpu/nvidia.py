"""NVIDIA GPUs, read through NVML, the driver's library."""

import _ctypes
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from collector.errors import CollectorError, SourceAbsent, SourceFailed
from collector.schema import BYTES_PER_MB, SqlValue
from collector.sources.gpu.older_nvml import use_older_names
from collector.sources.gpu.reader import GpuIdentity, GpuReading, sum_by_process

RETRY_SECONDS = 60
"""How often a new NVML session is tried while there is none, or while one of its GPUs is missing."""

_NOT_AVAILABLE = (2**32 - 1, 2**64 - 1)
"""Numbers by which NVML says that it has no value."""

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
"""Column, the NVML function that returns it, its arguments, and how many of NVML's units make one of ours."""

_MAY_BE_ZERO = ("fan_usage", "energy_joules")

_PROCESS_LISTS = ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetGraphicsRunningProcesses_v3")

_PCI_ADDRESS = re.compile(r"([0-9a-f]+)(:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])")
"""Domain, and bus, device and function, as NVML writes them: 00000000:01:00.0."""


class NvidiaReader:
    """Every NVIDIA GPU, in one NVML session.

    Where reading fails, the session is ended and a new one started: at the next reading, then every
    `retry_seconds`.

    Args:
        retry_seconds: the least time between two starts of NVML.
        clock: seconds on a clock that nobody sets.
    """

    vendor = "nvidia"

    def __init__(
        self, retry_seconds: float = RETRY_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._retry_seconds = retry_seconds
        self._clock = clock
        self._nvml: Any = None
        self._gpus: list[_Gpu] = []
        self._started_at = float("-inf")
        self._failure: CollectorError | None = None

    @property
    def fault(self) -> str:
        """Which GPUs do not answer in this session, why, and what to do; empty if all answer."""
        faults = [f"{gpu.title}: {gpu.fault}" for gpu in self._gpus if gpu.fault]
        return "; ".join(faults) + "; see `dmesg`. The collector retries by itself" if faults else ""

    def read(self) -> list[GpuReading]:
        """Read every value of every GPU.

        Raises:
            SourceAbsent: no driver, or no GPU.
            SourceFailed: the driver does not answer, or none of the GPUs does.
        """
        import pynvml  # 3 MB: only where GPUs are read

        self._nvml = pynvml
        if self._failure and not self._may_start():
            raise self._failure.with_traceback(None)
        try:
            self._ensure_session()
            readings = [reading for gpu in self._gpus if (reading := gpu.read())]
        except pynvml.NVMLError as error:
            self._failure = _translate_error(pynvml, error)
            self.close()
            raise self._failure from None
        self._failure = None
        if not readings:
            raise SourceFailed(self.fault)
        return readings

    def close(self) -> None:
        """End the NVML session and unload its library."""
        self._gpus = []
        if self._nvml and self._nvml.nvmlLib:
            with suppress(self._nvml.NVMLError):  # a driver that was unloaded has ended the session itself
                self._nvml.nvmlShutdown()
            _unload_library(self._nvml)

    def _ensure_session(self) -> None:
        """Start a session if there is none, a GPU failed, or their number changed.

        A GPU that fell off the bus stays lost until the session ends, even after it came back; so a session
        with a lost GPU is replaced, but only every `retry_seconds`.
        """
        nvml = self._nvml
        stale = bool(self.fault) and self._may_start()
        if self._gpus and not stale and nvml.nvmlDeviceGetCount() == len(self._gpus):
            return
        self.close()
        self._started_at = self._clock()
        self._start_session()
        driver_version = None
        # If the driver does not answer, the next call raises.
        with suppress(nvml.NVMLError, UnicodeDecodeError):
            driver_version = nvml.nvmlSystemGetDriverVersion()
        self._gpus = [_Gpu(nvml, index, driver_version) for index in range(nvml.nvmlDeviceGetCount())]
        if not self._gpus:
            raise nvml.NVMLError(nvml.NVML_ERROR_GPU_NOT_FOUND)

    def _start_session(self) -> None:
        """Load the library and start a session in it, whatever version it has."""
        nvml = self._nvml
        try:
            nvml.nvmlInit()
        except nvml.NVMLError_FunctionNotFound:
            use_older_names(nvml)
            nvml.nvmlInit()
        else:
            use_older_names(nvml)

    def _may_start(self) -> bool:
        return self._clock() - self._started_at >= self._retry_seconds


class _Gpu:
    """One GPU in one NVML session.

    Args:
        nvml: the module pynvml.
        index: the GPU's number.
        driver_version: version of the driver, if known.
    """

    def __init__(self, nvml: Any, index: int, driver_version: str | None) -> None:
        self._nvml = nvml
        self._index = index
        self._driver_version = driver_version
        self._handle: Any = None
        self._identity: GpuIdentity | None = None
        self._errors: list[Exception] = []
        self.fault = ""
        """Why this GPU is not read any more in this session; empty while it is."""

    @property
    def title(self) -> str:
        """The number of the GPU, and its name if known."""
        name = self._identity.name if self._identity else None
        return f"GPU {self._index} ({name})" if name else f"GPU {self._index}"

    def read(self) -> GpuReading | None:
        """Read every value; None if this GPU does not answer, so that the others are still read.

        Raises:
            NVMLError: no GPU can be read: the driver was unloaded or updated.
        """
        if self.fault:
            return None
        try:
            if self._identity is None:
                self._identity = self._read_identity()
            self._errors.clear()
            values = {**self._usage(), **self._memory(), **self._numbers(), **self._clock_limits()}
            if self._errors and all(value is None for value in values.values()):
                raise self._errors[-1]
            return GpuReading(self._identity, values, self._process_bytes())
        except self._nvml.NVMLError as error:
            if _is_driver_gone(self._nvml, error):
                raise
            self.fault = str(error)
            return None

    def _read_identity(self) -> GpuIdentity:
        self._handle = self._nvml.nvmlDeviceGetHandleByIndex(self._index)
        return GpuIdentity(
            vendor=NvidiaReader.vendor,
            index=self._index,
            uuid=self._ask("nvmlDeviceGetUUID"),
            name=self._ask("nvmlDeviceGetName"),
            bus_address=_bus_address(self._ask("nvmlDeviceGetPciInfo")),
            driver_version=self._driver_version,
        )

    def _ask(self, function: str, *arguments: int) -> Any:
        """Return what an NVML function returns, or None if this GPU or driver does not report the value.

        Raises:
            NVMLError: the GPU or the driver is gone.
        """
        nvml = self._nvml
        try:
            answer = getattr(nvml, function)(self._handle, *arguments)
        except nvml.NVMLError_NotSupported:
            return None
        except UnicodeDecodeError as error:  # as under WSL: pynvml expects UTF-8
            return bytes(error.object).partition(b"\0")[0].decode(errors="replace")
        except nvml.NVMLError as error:
            if error.value == nvml.NVML_ERROR_GPU_IS_LOST or _is_driver_gone(nvml, error):
                raise
            self._errors.append(error)  # a GPU that works may still refuse one value
            return None
        return _available(answer)

    def _usage(self) -> dict[str, SqlValue]:
        rates = self._ask("nvmlDeviceGetUtilizationRates")
        if not rates:
            return {}
        return {"gpu_usage": _available(rates.gpu), "memory_bandwidth_usage": _available(rates.memory)}

    def _memory(self) -> dict[str, SqlValue]:
        """Return memory as nvidia-smi shows it; drivers before 510 count what they reserve as used."""
        version_2 = self._nvml.nvmlMemory_v2
        memory = self._ask("nvmlDeviceGetMemoryInfo", version_2) or self._ask("nvmlDeviceGetMemoryInfo")
        if not memory or not memory.total:  # a GPU without memory of its own reports nothing, or 0
            return {}
        return {
            "memory_used_mb": _scaled(memory.used, BYTES_PER_MB),
            "memory_free_mb": _scaled(memory.free, BYTES_PER_MB),
            "memory_total_mb": _scaled(memory.total, BYTES_PER_MB),
        }

    def _numbers(self) -> dict[str, SqlValue]:
        values = {
            column: _scaled(self._ask(function, *arguments), divisor)
            for column, function, arguments, divisor in _NUMBERS
        }
        # A working GPU draws power, has clocks and is warm: some report 0 for what they cannot read.
        return {c: None if value == 0 and c not in _MAY_BE_ZERO else value for c, value in values.items()}

    def _clock_limits(self) -> dict[str, SqlValue]:
        state = self._ask("nvmlDeviceGetPerformanceState")
        return {
            "performance_state": None if state == self._nvml.NVML_PSTATE_UNKNOWN else state,
            "throttle_reasons": self._ask("nvmlDeviceGetCurrentClocksEventReasons"),
        }

    def _process_bytes(self) -> Mapping[int, int | None]:
        """Return bytes by process id; a process that computes and draws is in both lists, with one amount."""
        memory: dict[int, int | None] = {}
        for function in _PROCESS_LISTS:
            processes = self._ask(function) or ()
            used = sum_by_process((process.pid, process.usedGpuMemory) for process in processes)
            for pid, amount in used.items():
                known = [one for one in (memory.get(pid), amount) if one is not None]
                memory[pid] = max(known, default=None)
        return memory


def _available(answer: Any) -> Any:
    return None if answer in _NOT_AVAILABLE else answer


def _scaled(answer: int | None, divisor: int) -> float | None:
    return None if answer is None or answer in _NOT_AVAILABLE else answer / divisor


def _bus_address(pci: Any) -> str | None:
    """Return the address as Linux writes it: NVML's 00000000:0A:00.0 is 0000:0a:00.0; None if not known."""
    if pci is None:
        return None
    for field in ("busId", "busIdLegacy"):  # drivers before 384 fill the second only
        with suppress(UnicodeDecodeError, AttributeError):
            text = getattr(pci, field)  # bytes or text, depending on the version of pynvml
            if isinstance(text, bytes):
                text = text.decode(errors="replace")
            if match := _PCI_ADDRESS.fullmatch(text.lower()):
                return f"{int(match[1], 16):04x}{match[2]}"
    return None


def _is_driver_gone(nvml: Any, error: Any) -> bool:
    """Whether an NVMLError means that no GPU can be read any more in this session."""
    return error.value in (
        nvml.NVML_ERROR_UNINITIALIZED,
        nvml.NVML_ERROR_DRIVER_NOT_LOADED,
        nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    )


def _translate_error(nvml: Any, error: Any) -> CollectorError:
    """Return what an NVMLError means for all GPUs, and what to do."""
    match error.value:
        case nvml.NVML_ERROR_LIBRARY_NOT_FOUND:
            return SourceAbsent("no NVIDIA driver is installed here (libnvidia-ml.so.1 cannot be loaded)")
        case nvml.NVML_ERROR_GPU_NOT_FOUND:
            return SourceAbsent("the NVIDIA driver is loaded and finds no GPU")
        case nvml.NVML_ERROR_DRIVER_NOT_LOADED:
            return SourceAbsent(
                "the NVIDIA driver is installed but not loaded: load it with `modprobe nvidia`, and see "
                "`dmesg` if that fails; in a container, pass the GPUs in"
            )
        case nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
            return SourceFailed(
                "the NVIDIA driver was updated while its former version is still loaded: reboot, or stop all "
                "that uses the GPU and reload the kernel module `nvidia`. The collector need not be stopped"
            )
        case nvml.NVML_ERROR_NO_PERMISSION:
            return SourceFailed("the NVIDIA driver refuses this user: let it read and write /dev/nvidia*")
    return SourceFailed(f"the NVIDIA driver does not answer ({error}): see what `nvidia-smi` and `dmesg` say")


def _unload_library(nvml: Any) -> None:
    """Make the next session load the library from its file, which an update may have replaced.

    pynvml never unloads it, and while a library is loaded the dynamic linker returns that one for its name.
    """
    library, nvml.nvmlLib = nvml.nvmlLib, None
    nvml._nvmlGetFunctionPointer_cache.clear()  # noqa: SLF001 - its pointers lead into the library
    _ctypes.dlclose(library._handle)  # noqa: SLF001 - ctypes has no public way to unload
