"""A libnvidia-ml.so.1 that needs no GPU: compiled here, it returns what a test sets."""

import _ctypes
import atexit
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

RUN_ZIG = "import runpy; runpy.run_module('ziglang', run_name='__main__', alter_sys=True)"
LIBRARY = "libnvidia-ml.so.1"
SOURCE = Path(__file__).with_suffix(".c")
GIB = 2**30

GPU_ANSWERS = {
    "nvmlDeviceGetHandleByIndex_v2": "",
    "nvmlDeviceGetName": "NVIDIA GeForce RTX 3090",
    "nvmlDeviceGetUtilizationRates": "37 12",
    "nvmlDeviceGetMemoryInfo_v2": f"{24 * GIB} {GIB // 2} {13 * GIB + GIB // 2} {10 * GIB}",
    "nvmlDeviceGetMemoryInfo": f"{24 * GIB} {13 * GIB + GIB // 2} {10 * GIB + GIB // 2}",
    "nvmlDeviceGetTemperature": "61",
    "nvmlDeviceGetFanSpeed": "45",
    "nvmlDeviceGetPowerUsage": "215500",
    "nvmlDeviceGetEnforcedPowerLimit": "350000",
    "nvmlDeviceGetClockInfo": "1905 1900 9751 1695",
    "nvmlDeviceGetTotalEnergyConsumption": "123456789",
    "nvmlDeviceGetPerformanceState": "2",
    "nvmlDeviceGetCurrentClocksEventReasons": "4",
    "nvmlDeviceGetComputeRunningProcesses_v3": "",
    "nvmlDeviceGetGraphicsRunningProcesses_v3": "",
}
"""What each GPU returns unless a test sets something else."""


@cache
def compiler() -> list[str]:
    """Return the command of a C compiler: that of the machine, else one from a wheel of 80 MB, installed once."""
    if found := shutil.which("cc") or shutil.which("gcc") or shutil.which("clang"):
        return [found]
    wheel = tempfile.mkdtemp(prefix="compiler-")
    atexit.register(shutil.rmtree, wheel, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--target", wheel, "ziglang"], check=True)
    return [sys.executable, "-c", f"import sys; sys.path.insert(0, {wheel!r}); {RUN_ZIG}", "cc"]


@cache
def compiled(*macros: str) -> bytes:
    """Return the library, compiled with these macros, each `NAME` or `NAME=VALUE`."""
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory, LIBRARY)
        options = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-Wl,-soname,{LIBRARY}"]
        defined = [f"-D{macro}" for macro in macros]
        subprocess.run([*compiler(), *options, *defined, "-o", target, SOURCE], check=True)
        return target.read_bytes()


class NvmlStub:
    """One stub library and what it returns; at first one GPU that works.

    Answers may change at any time: the library reads them at each call. A later statement about the same
    function and GPU replaces an earlier one; `*` means all.

    Args:
        directory: for the library, its answers and the list of calls.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._statements: list[str] = []
        self.install()
        self.answer("nvmlInitWithFlags")
        self.answer("nvmlShutdown")
        self.answer("nvmlSystemGetDriverVersion", "580.95.05")
        for function, value in GPU_ANSWERS.items():
            self.answer(function, value)
        self.set_count(1)

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which a child process finds this library, and the library its answers."""
        return {"LD_LIBRARY_PATH": str(self.directory), "NVML_STUB": str(self.directory)}

    def install(self, *macros: str) -> None:
        """Install the library as an update of the driver does: as a new file with the old name."""
        self._replace(LIBRARY, compiled(*macros))

    def uninstall(self) -> None:
        """Replace the library by a file that is none, which hides libraries later in the search path."""
        self._replace(LIBRARY, b"not a library")

    def set_count(self, count: int) -> None:
        """Set the number of GPUs, each with its own uuid and bus address."""
        self.answer("nvmlDeviceGetCount_v2", count)
        for gpu in range(count):
            self.answer("nvmlDeviceGetUUID", f"GPU-{gpu:08}", gpu=gpu)
            self.answer("nvmlDeviceGetPciInfo_v3", f"00000000:{gpu + 1:02X}:00.0", gpu=gpu)

    def set_module_version(self, version: int) -> None:
        """Set the library version that the loaded kernel module needs; that of `install()` is 1."""
        self._state(f"module {version}")

    def answer(self, function: str, *values: object, gpu: int | str = "*") -> None:
        """Make a function succeed with these values, in the units of NVML.

        A lone surrogate (as of `os.fsdecode`) becomes its byte: text that is not UTF-8.
        """
        self._state(" ".join(["value", function, str(gpu), *map(str, values)]))

    def fail(self, function: str, code: int, gpu: int | str = "*") -> None:
        """Make a function fail with an NVML code."""
        self._state(f"error {function} {gpu} {code}")

    def recover(self) -> None:
        """Remove every `fail`."""
        self._statements = [line for line in self._statements if not line.startswith("error")]
        self._write()

    @contextmanager
    def hanging(self, function: str, gpu: int | str = "*") -> Iterator[Callable[[], None]]:
        """Make a function hang until the end of the block; yield a function that waits for such a call."""
        fifo = self.directory / f"hang-{function}"
        os.mkfifo(fifo)
        writers: list[int] = []
        self._state(f"hang {function} {gpu} {fifo}")
        try:
            yield lambda: writers.append(os.open(fifo, os.O_WRONLY))
        finally:
            writers.append(os.open(fifo, os.O_RDWR))  # never blocks when opened like this, and ends the wait
            fifo.unlink()
            for writer in writers:
                os.close(writer)

    def calls(self) -> Counter[str]:
        """Return how often each function was called up to now."""
        path = self.directory / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return Counter(line.split()[0] for line in lines)

    @contextmanager
    def loaded(self) -> Iterator[ctypes.CDLL]:
        """Load the library into this process: from then on, the dynamic linker returns it for its name.

        The process needs the variable NVML_STUB.
        """
        library = ctypes.CDLL(str(self.directory / LIBRARY))
        try:
            yield library
        finally:
            _ctypes.dlclose(library._handle)

    def _state(self, statement: str) -> None:
        self._statements.append(statement)
        self._write()

    def _write(self) -> None:
        self._replace(
            "answers", "".join(f"{line}\n" for line in self._statements).encode(errors="surrogateescape")
        )

    def _replace(self, name: str, content: bytes) -> None:
        new = self.directory / f"{name}.new"
        new.write_bytes(content)
        new.replace(self.directory / name)
