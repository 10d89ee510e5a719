"""llama-server's processes: which there are, what each uses, since when each runs."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from collector.parsers.command_line import option
from collector.schema import SqlValue, Table
from collector.sources.base import Reading, Tick

SLEEP_OPTION, SLEEP_VARIABLE = "--sleep-idle-seconds", "LLAMA_ARG_SLEEP_IDLE_SECONDS"

FULL_SEARCH_SECONDS = 60
"""How often all processes are looked at; between, only new ones. Catches a wrapper that execs late."""


@dataclass(frozen=True, slots=True)
class LlamaProcess:
    """One llama-server process at one moment.

    Args:
        pid: its process id.
        started_at: Unix seconds of its start.
        cpu_usage: percent of all cores since the last reading (0-100); None when first seen.
        cpu_seconds: processor time since its start.
        resident_bytes: memory held, shared pages included.
        arguments: its command line; empty where it may not be read.
        may_sleep: whether it was told to let its model sleep when idle; also where that may not be looked at.
        uptime_seconds: since its start, however the clock was set since.
        started_boot_seconds: its start, seconds since the boot of the host: with the boot and the pid its
            identity, which no setting of the clock changes.
        boot_id: the boot of the host; None where the kernel does not report it.
    """

    pid: int
    started_at: float
    cpu_usage: float | None
    cpu_seconds: float
    resident_bytes: int
    arguments: tuple[str, ...]
    may_sleep: bool = True
    uptime_seconds: float = 0.0
    started_boot_seconds: float = 0.0
    boot_id: str | None = None

    @property
    def port(self) -> int:
        """The TCP port that it was told to listen on; llama-server's default where it was told none."""
        value = option(self.arguments, "--port") or ""
        return int(value) if value.isdecimal() else 8080


class LlamaProcessSource:
    """Finds the processes of one name and measures them.

    Args:
        process_name: the name, as `ps -o comm` or the program file gives it.
    """

    name = "llama_process"
    tables: tuple[Table, ...] = ()
    defaults: Mapping[str, SqlValue] = {"cpu_usage": None, "memory_usage": None, "uptime": None}

    def __init__(self, process_name: str) -> None:
        self._process_name = process_name
        self._known: dict[int, _Measured] = {}
        self._unsettled: set[int] = set()
        self._present: set[int] = set()
        self._searched_at = float("-inf")
        self._read_at: float | None = None
        self._cores = os.cpu_count() or 1
        self._memory_bytes = psutil.virtual_memory().total
        self._boot_id = read_boot_id()

    def read(self, _tick: Tick) -> Reading[tuple[LlamaProcess, ...]]:
        """Measure every process of that name, longest running first."""
        since_boot = _since_boot()  # once, so that the ages of all processes are of one moment
        self._find()
        now = time.monotonic()
        elapsed = now - self._read_at if self._read_at is not None else None
        self._read_at = now
        measured = [self._measure(pid, elapsed, since_boot) for pid in list(self._known)]
        found = [process for process in measured if process]
        processes = tuple(sorted(found, key=lambda process: (-process.uptime_seconds, process.pid)))
        return Reading(processes, snapshot=self._snapshot(processes))

    def close(self) -> None:
        """Nothing is held open."""

    def _snapshot(self, processes: tuple[LlamaProcess, ...]) -> dict[str, SqlValue]:
        shares = [process.cpu_usage for process in processes]
        memory = 100 * sum(process.resident_bytes for process in processes) / self._memory_bytes
        return {
            "cpu_usage": None if None in shares else min(100.0, float(sum(share or 0 for share in shares))),
            "memory_usage": min(100.0, memory),
            "uptime": processes[0].uptime_seconds if processes else 0.0,
        }

    def _find(self) -> None:
        """Look at the name of each process that is new, and of the newest once more.

        A process that was seen between fork and exec still bears its parent's name.
        """
        present = set(psutil.pids())
        new = present - self._present
        looked_at = new | self._unsettled
        if time.monotonic() - self._searched_at >= FULL_SEARCH_SECONDS:
            self._searched_at, looked_at = time.monotonic(), present
        for pid in looked_at & present - self._known.keys():
            self._meet(pid, since_last_reading=pid in new and self._read_at is not None)
        self._present, self._unsettled = present, new

    def _meet(self, pid: int, *, since_last_reading: bool) -> None:
        try:
            process = psutil.Process(pid)
            if process.name() == self._process_name and process.status() != psutil.STATUS_ZOMBIE:
                # What started since the last reading used all that it used since then.
                self._known[pid] = _Measured(process, 0.0 if since_last_reading else None)
        except psutil.Error:
            return  # it ended, or may not be looked at: then it is none of ours

    def _measure(self, pid: int, elapsed: float | None, since_boot: float) -> LlamaProcess | None:
        measured = self._known[pid]
        try:
            with measured.process.oneshot():
                times = measured.process.cpu_times()
                resident = measured.process.memory_info().rss
                started_at = measured.process.create_time()
                ended = measured.process.status() == psutil.STATUS_ZOMBIE
            if ended or not measured.process.is_running():
                raise psutil.NoSuchProcess(pid)
        except psutil.Error:
            del self._known[pid]
            self._present.discard(pid)  # the number may already belong to another process
            return None
        cpu_seconds = times.user + times.system
        return LlamaProcess(
            pid,
            started_at,
            measured.usage(cpu_seconds, elapsed, self._cores),
            cpu_seconds,
            resident,
            measured.arguments,
            measured.may_sleep,
            measured.uptime_seconds(since_boot),
            measured.started_boot_seconds,
            self._boot_id,
        )


class _Measured:
    """What is remembered of one process between two readings."""

    def __init__(self, process: psutil.Process, cpu_seconds: float | None) -> None:
        self.process = process
        self._cpu_seconds = cpu_seconds
        self.arguments = _arguments(process)
        self.may_sleep = _may_sleep(process, self.arguments)
        # psutil adds when the machine was booted by today's wall clock; what is left without it stays right.
        self.started_boot_seconds = round(process.create_time() - psutil.boot_time(), 2)

    def uptime_seconds(self, since_boot: float) -> float:
        return max(0.0, since_boot - self.started_boot_seconds)

    def usage(self, cpu_seconds: float, elapsed: float | None, cores: int) -> float | None:
        before, self._cpu_seconds = self._cpu_seconds, cpu_seconds
        if before is None or not elapsed:
            return None
        return min(100.0, max(0.0, 100 * (cpu_seconds - before) / elapsed / cores))


def read_boot_id() -> str | None:
    """Return the kernel's random id of the present boot; None where it has none."""
    try:
        return _BOOT_ID.read_text().strip() or None
    except OSError:
        return None


_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def _since_boot() -> float:
    """Seconds on a clock that nobody sets and that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _arguments(process: psutil.Process) -> tuple[str, ...]:
    try:
        return tuple(process.cmdline())
    except psutil.Error:
        return ()


def _may_sleep(process: psutil.Process, arguments: tuple[str, ...]) -> bool:
    """Only who sees command line and environment can be sure that a model never sleeps."""
    if not arguments or option(arguments, SLEEP_OPTION):
        return True
    try:
        return SLEEP_VARIABLE in process.environ()
    except psutil.Error:
        return True
