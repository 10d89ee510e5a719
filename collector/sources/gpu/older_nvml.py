"""Functions of NVML under the names that older drivers have.

pynvml asks for the newest version of each function. A driver that was released before that version has an
older one, which does the same.
"""

import ctypes
from collections.abc import Callable
from typing import Any

_OLDER_NAMES = {
    "nvmlInitWithFlags": ("nvmlInit_v2", "nvmlInit"),  # 390; the others take no argument
    "nvmlDeviceGetCount_v2": ("nvmlDeviceGetCount",),  # 319
    "nvmlDeviceGetHandleByIndex_v2": ("nvmlDeviceGetHandleByIndex",),  # 319
    "nvmlDeviceGetPciInfo_v3": ("nvmlDeviceGetPciInfo_v2", "nvmlDeviceGetPciInfo"),  # 384
    "nvmlDeviceGetCurrentClocksEventReasons": ("nvmlDeviceGetCurrentClocksThrottleReasons",),  # 535
    "nvmlDeviceGetComputeRunningProcesses_v3": ("nvmlDeviceGetComputeRunningProcesses_v2",),  # 510
    "nvmlDeviceGetGraphicsRunningProcesses_v3": ("nvmlDeviceGetGraphicsRunningProcesses_v2",),  # 510
}
"""Older names by newest one, with the driver that brought it. Their arguments are the same, or fewer."""

_FIRST_PROCESS_LISTS = {
    "nvmlDeviceGetComputeRunningProcesses_v3": "nvmlDeviceGetComputeRunningProcesses",
    "nvmlDeviceGetGraphicsRunningProcesses_v3": "nvmlDeviceGetGraphicsRunningProcesses",
}
"""The first versions, of drivers before 450, which return shorter structures."""


class _FirstProcessInfo(ctypes.Structure):
    """nvmlProcessInfo_v1_t."""

    _fields_ = (("pid", ctypes.c_uint), ("usedGpuMemory", ctypes.c_ulonglong))


def use_older_names(nvml: Any) -> None:
    """Let pynvml find the functions that its loaded library has under older names only.

    Args:
        nvml: the module pynvml, with its library loaded.
    """
    library, functions = nvml.nvmlLib, nvml._nvmlGetFunctionPointer_cache  # noqa: SLF001 - it has no other way
    for name, older_names in _OLDER_NAMES.items():
        if not hasattr(library, name):
            older = next((older for older in older_names if hasattr(library, older)), None)
            if older:
                functions[name] = getattr(library, older)
    for name, first in _FIRST_PROCESS_LISTS.items():
        if name not in functions and not hasattr(library, name) and hasattr(library, first):
            functions[name] = _with_longer_structures(getattr(library, first))


def _with_longer_structures(function: Callable[..., int]) -> Callable[..., int]:
    """Return a function that fills the structures of today from the first ones."""

    def call(handle: Any, count: Any, processes: Any) -> int:
        if processes is None:
            return function(handle, count, None)
        first = (_FirstProcessInfo * len(processes))()
        code = function(handle, count, first)
        for old, new in zip(first, processes, strict=True):
            new.pid, new.usedGpuMemory = old.pid, old.usedGpuMemory
        return code

    return call
