"""The llama-server processes of this machine: what each of them uses, and since when it runs."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from collector.health import read_boot_id
from collector.parsers.command_line import option
from collector.schema import SqlValue, Table
from collector.sources.base import Reading, Tick

SLEEP_OPTION, SLEEP_VARIABLE = "--sleep-idle-seconds", "LLAMA_ARG_SLEEP_IDLE_SECONDS"

FULL_SEARCH_SECONDS = 60
"""How often the names of all processes are read, not only of new ones: a wrapper may call exec late."""


@dataclass(frozen=True, slots=True)
class LlamaProcess:
    """One llama-server process at one moment.

    Args:
        pid: its process id.
        started_at: Unix seconds of its start.
        cpu_usage: percent of all cores since the last reading (0-100); None when first seen.
        cpu_seconds: processor time since its start.
        resident_bytes: resident memory, shared pages included.
        arguments: its command line; empty where it cannot be read.
        may_sleep: whether its model may sleep when idle; also true where its options cannot be read.
        uptime_seconds: since its start, by a clock that nobody sets.
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
        """TCP port of its option --port; llama-server's default without it."""
        value = option(self.arguments, "--port") or ""
        return int(value) if value.isdecimal() else 8080


class LlamaProcessSource:
    """Measures all processes of one name.

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
        """Measure every process of that name, the longest running first."""
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
        """Do nothing: no resource is open."""

    def _snapshot(self, processes: tuple[LlamaProcess, ...]) -> dict[str, SqlValue]:
        shares = [process.cpu_usage for process in processes]
        memory = 100 * sum(process.resident_bytes for process in processes) / self._memory_bytes
        return {
            "cpu_usage": None if None in shares else min(100.0, float(sum(share or 0 for share in shares))),
            "memory_usage": min(100.0, memory),
            "uptime": processes[0].uptime_seconds if processes else 0.0,
        }

    def _find(self) -> None:
        """Read the names of new processes, and those of the last reading's new ones once more.

        A process that was seen between fork and exec still has the name of its parent.
        """
        present = set(psutil.pids())
        new = present - self._present
        candidates = new | self._unsettled
        if time.monotonic() - self._searched_at >= FULL_SEARCH_SECONDS:
            self._searched_at, candidates = time.monotonic(), present
        for pid in candidates & present - self._known.keys():
            self._add_if_named(pid, since_last_reading=pid in new and self._read_at is not None)
        self._present, self._unsettled = present, new

    def _add_if_named(self, pid: int, *, since_last_reading: bool) -> None:
        try:
            process = psutil.Process(pid)
            if process.name() == self._process_name and process.status() != psutil.STATUS_ZOMBIE:
                # A process that started since the last reading used all its time since then.
                self._known[pid] = _Measured(process, 0.0 if since_last_reading else None)
        except psutil.Error:
            return  # it has ended, or belongs to another user who hides it

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
    """One process, and its processor time at the last reading."""

    def __init__(self, process: psutil.Process, cpu_seconds: float | None) -> None:
        self.process = process
        self._cpu_seconds = cpu_seconds
        self.arguments = _arguments(process)
        self.may_sleep = _may_sleep(process, self.arguments)
        # psutil adds the time of the boot by today's wall clock; without it the start does not move.
        self.started_boot_seconds = round(process.create_time() - psutil.boot_time(), 2)

    def uptime_seconds(self, since_boot: float) -> float:
        return max(0.0, since_boot - self.started_boot_seconds)

    def usage(self, cpu_seconds: float, elapsed: float | None, cores: int) -> float | None:
        before, self._cpu_seconds = self._cpu_seconds, cpu_seconds
        if before is None or not elapsed:
            return None
        return min(100.0, max(0.0, 100 * (cpu_seconds - before) / elapsed / cores))


def _since_boot() -> float:
    """Return seconds since the boot, time asleep included, by a clock that nobody sets."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _arguments(process: psutil.Process) -> tuple[str, ...]:
    try:
        # Names of files may be any bytes; a database stores only what UTF-8 can express.
        return tuple(os.fsencode(argument).decode("utf-8", "replace") for argument in process.cmdline())
    except psutil.Error:
        return ()


def _may_sleep(process: psutil.Process, arguments: tuple[str, ...]) -> bool:
    """Return False only if command line and environment can be read and set no sleep."""
    if not arguments or option(arguments, SLEEP_OPTION):
        return True
    try:
        return SLEEP_VARIABLE in process.environ()
    except psutil.Error:
        return True
