"""Reads the real GPUs of this machine and checks that the readings are plausible; not a test of pytest.

    python -m tests.sources.gpu.real_gpu [--load] [--samples 5]

It needs the package's dependencies (nvidia-ml-py, structlog) and a driver. With `--load` it reads the GPUs a
second time while the first one is busy: a thread allocates memory by the CUDA driver's own library and writes
to it. It prints every reading, then every violation, and exits with 1 if there is one.
"""

import argparse
import ctypes
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from collector.sources.base import Reading, Tick
from collector.sources.gpu.source import GPU_METRICS, GpuDetail, GpuIdentity, GpuSource

INTERVAL_SECONDS = 1.0
LOAD_BYTES = 2**30
MB_TOLERANCE = 1.0
ENERGY_TOLERANCE = 0.35
"""Power is a mean of up to a second, so that at a change of load it is late by as much."""

BUS_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
PERCENTAGES = ("gpu_usage", "memory_bandwidth_usage", "fan_usage")
SMI_COLUMNS = ("index", "uuid", "name", "pci.bus_id", "driver_version", "memory.total", "power.limit")

Sample = tuple[float, dict[str, Any]]
"""Seconds on a steady clock, and one row of one GPU."""


def main() -> int:
    """Read, print and check; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--load", action="store_true", help="read a second time, with the first GPU busy")
    parser.add_argument("--samples", type=int, default=5)
    options = parser.parse_args()
    source = GpuSource()
    try:
        violations = check_phase(source, "as it is", options.samples)
        if options.load:
            with busy_gpu():
                violations += check_phase(source, "under load", options.samples, loaded=True)
    finally:
        source.close()
    for violation in violations:
        print(f"VIOLATION {violation}")
    print(f"{len(violations)} violation(s)")
    return 1 if violations else 0


def check_phase(source: GpuSource, title: str, count: int, *, loaded: bool = False) -> list[str]:
    """Read all GPUs some times, print the readings, and return what is wrong with them."""
    print(f"== {title}")
    samples: dict[str, list[Sample]] = {}
    for number in range(count):
        time.sleep(INTERVAL_SECONDS if number else 0)
        started = time.perf_counter()
        reading = source.read(Tick(int(time.time())))
        read_at = time.monotonic()
        print(f"-- reading {number + 1}: {(time.perf_counter() - started) * 1000:.1f} ms, {reading.state}")
        for row in rows(reading):
            print(" ".join(f"{column}={value}" for column, value in row.items()))
            samples.setdefault(str(row["uuid"]), []).append((read_at, row))
    for gpu in reading.detail.gpus:
        print(gpu)
    print("memory by process (MB):", dict(reading.detail.process_memory_mb))
    violations = [*check_identities(reading.detail.gpus), *compare_with_nvidia_smi(reading)]
    for of_gpu in samples.values():
        violations += [violation for _, row in of_gpu for violation in check_row(row)]
        violations += check_energy(of_gpu)
    if loaded:
        violations += check_load(reading, next(iter(samples.values())))
    return violations


def rows(reading: Reading[GpuDetail]) -> list[dict[str, Any]]:
    return [dict(zip(GPU_METRICS.written_columns, row, strict=True)) for _, row in reading.rows]


def check_identities(gpus: tuple[GpuIdentity, ...]) -> Iterator[str]:
    for gpu in gpus:
        if not gpu.uuid or not gpu.uuid.startswith("GPU-"):
            yield f"GPU {gpu.index}: uuid {gpu.uuid!r}"
        if not gpu.name:
            yield f"GPU {gpu.index}: no name"
        if not gpu.bus_address or not BUS_ADDRESS.fullmatch(gpu.bus_address):
            yield f"GPU {gpu.index}: bus address {gpu.bus_address!r}"
        elif not Path("/sys/bus/pci/devices", gpu.bus_address).is_dir():
            print(f"note: /sys/bus/pci/devices has no {gpu.bus_address} (hidden in a container?)")
        if not gpu.driver_version or not re.fullmatch(r"[0-9]+(\.[0-9]+)+", gpu.driver_version):
            yield f"GPU {gpu.index}: driver version {gpu.driver_version!r}"
    if len({gpu.uuid for gpu in gpus}) != len(gpus):
        yield "two GPUs have one uuid"


def check_row(row: dict[str, Any]) -> Iterator[str]:
    gpu = f"GPU {row['gpu_index']}"
    if row["vendor"] != "nvidia":
        yield f"{gpu}: vendor {row['vendor']!r}"
    if unknown := [
        column for column, value in row.items() if value is None and column != "energy_used_joules"
    ]:
        print(f"note: {gpu} does not report {', '.join(unknown)}")
    used, free, total = (row[f"memory_{name}_mb"] for name in ("used", "free", "total"))
    if used is None or free is None or total is None:
        yield f"{gpu}: memory is not known"
    elif min(used, free) < 0 or not 0 < used + free <= total + MB_TOLERANCE:
        yield f"{gpu}: memory used {used} + free {free} > total {total}"
    for column in PERCENTAGES:
        if row[column] is not None and not 0 <= row[column] <= 100:
            yield f"{gpu}: {column} {row[column]}"
    if row["temperature_celsius"] is not None and not 0 < row["temperature_celsius"] < 120:
        yield f"{gpu}: temperature {row['temperature_celsius']}"
    if row["power_watts"] is not None and not 1 < row["power_watts"] < 2000:
        yield f"{gpu}: power {row['power_watts']} W"


def check_energy(samples: list[Sample]) -> Iterator[str]:
    """Compare the energy of each row, and of all, with power times time."""
    measured = expected = 0.0
    for (before_at, before), (now_at, now) in pairwise(samples):
        gpu = f"GPU {now['gpu_index']}"
        if before["energy_joules"] is None or now["energy_joules"] is None:
            continue
        used = now["energy_used_joules"]
        if used is None or used != now["energy_joules"] - before["energy_joules"]:
            yield f"{gpu}: energy_used_joules {used}, counter {before['energy_joules']} then {now['energy_joules']}"
            continue
        if before["power_watts"] is None or now["power_watts"] is None:
            continue
        measured += used
        expected += (before["power_watts"] + now["power_watts"]) / 2 * (now_at - before_at)
    if expected:
        print(f"energy: {measured:.1f} J used, power times time is {expected:.1f} J")
        if abs(measured - expected) > ENERGY_TOLERANCE * expected:
            yield f"energy used {measured:.1f} J is far from power times time, {expected:.1f} J"


def compare_with_nvidia_smi(reading: Reading[GpuDetail]) -> Iterator[str]:
    if not (program := shutil.which("nvidia-smi")):
        print("note: there is no nvidia-smi to compare with")
        return
    command = [program, f"--query-gpu={','.join(SMI_COLUMNS)}", "--format=csv,noheader,nounits"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    print(listed.strip())
    shown = [dict(zip(SMI_COLUMNS, line.split(", "), strict=True)) for line in listed.strip().splitlines()]
    if len(shown) != len(reading.detail.gpus):
        yield f"nvidia-smi shows {len(shown)} GPUs, the source reads {len(reading.detail.gpus)}"
    for gpu, row, smi in zip(reading.detail.gpus, rows(reading), shown, strict=False):
        domain, rest = smi["pci.bus_id"].lower().split(":", 1)
        pairs = {
            "index": (gpu.index, int(smi["index"])),
            "uuid": (gpu.uuid, smi["uuid"]),
            "name": (gpu.name, smi["name"]),
            "bus address": (gpu.bus_address, f"{int(domain, 16):04x}:{rest}"),
            "driver version": (gpu.driver_version, smi["driver_version"]),
            "memory": (round(row["memory_total_mb"]), round(float(smi["memory.total"]))),
            "power limit": (str(row["power_limit_watts"]), str(float(smi["power.limit"]))),
        }
        for what, (ours, theirs) in pairs.items():
            if ours != theirs:
                yield f"GPU {gpu.index}: {what} is {ours!r}, nvidia-smi shows {theirs!r}"


def check_load(reading: Reading[GpuDetail], samples: list[Sample]) -> Iterator[str]:
    """Check that a busy GPU is read as busy."""
    _, last = samples[-1]
    if last["gpu_usage"] is not None and last["gpu_usage"] < 10:
        yield f"the busy GPU is read with a usage of {last['gpu_usage']} %"
    if last["memory_used_mb"] < LOAD_BYTES / 2**20:
        yield f"the busy GPU is read with {last['memory_used_mb']} MB in use"
    own = reading.detail.process_memory_mb.get(os.getpid())
    if own is None:
        print("note: this process is not in the list (in a container the driver lists other process ids)")
    elif own < LOAD_BYTES / 2**20:
        yield f"this process is read with {own} MB of GPU memory"


@contextmanager
def busy_gpu() -> Iterator[None]:
    """Write to the memory of the first GPU until the end of the block."""
    started, stop = threading.Event(), threading.Event()
    errors: list[str] = []

    def check(function: str, code: int) -> None:
        if code:
            raise RuntimeError(f"{function} failed with {code}")

    def work() -> None:
        try:
            cuda = ctypes.CDLL("libcuda.so.1")
            device, context, address = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
            check("cuInit", cuda.cuInit(0))
            check("cuDeviceGet", cuda.cuDeviceGet(ctypes.byref(device), 0))
            check("cuCtxCreate", cuda.cuCtxCreate_v2(ctypes.byref(context), 0, device))
            check("cuMemAlloc", cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(LOAD_BYTES)))
            started.set()
            while not stop.is_set():
                for _ in range(100):
                    words = ctypes.c_size_t(LOAD_BYTES // 4)
                    check("cuMemsetD32", cuda.cuMemsetD32_v2(address, ctypes.c_uint(1), words))
                check("cuCtxSynchronize", cuda.cuCtxSynchronize())
            check("cuCtxDestroy", cuda.cuCtxDestroy_v2(context))
        except (OSError, RuntimeError) as error:
            errors.append(str(error))
        finally:
            started.set()

    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    time.sleep(2 * INTERVAL_SECONDS)  # power is a mean of the last second
    try:
        if errors:
            print(f"note: no load could be made: {errors[0]}")
        yield
    finally:
        stop.set()
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
