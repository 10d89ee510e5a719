"""The source of the llama-server processes of this machine: usage and uptime of each."""

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

import psutil

from collector.health import read_boot_id
from collector.parsers.command_line import option
from collector.schema import SqlValue, Table
from collector.sources.base import Reading, Tick
from collector.sources.llama.local.addresses import process_at
from collector.sources.llama.local.process import LlamaProcess

SLEEP_OPTION, SLEEP_VARIABLE = "--sleep-idle-seconds", "LLAMA_ARG_SLEEP_IDLE_SECONDS"

FULL_SEARCH_SECONDS = 60
"""How often the names of all processes are read, not only those of new ones.

A process gets another name by exec, which a wrapper script may call long after its start.
"""


class LlamaProcessSource:
    """The source of all processes with one name.

    Args:
        process_name: name of the program file, as `ps -o comm` shows it.
        url: URL of the monitored server; empty if there is none.
    """

    name = "llama_process"
    tables: tuple[Table, ...] = ()
    defaults: Mapping[str, SqlValue] = {"cpu_usage": None, "memory_usage": None, "uptime": None}

    def __init__(self, process_name: str, url: str = "") -> None:
        self._process_name = process_name
        self._url = url
        self._known: dict[int, _Tracked] = {}
        self._new: set[int] = set()
        self._present: set[int] = set()
        self._searched_at = float("-inf")
        self._read_at: float | None = None
        self._cores = os.cpu_count() or 1
        self._memory_bytes = psutil.virtual_memory().total
        self._boot_id = read_boot_id()

    def read(self, _tick: Tick) -> Reading[tuple[LlamaProcess, ...]]:
        """Measure each process of that name; the one that has run longest comes first."""
        # Read once, so that the uptimes of all processes refer to the same moment.
        since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
        self._find()
        now = time.monotonic()
        elapsed = now - self._read_at if self._read_at is not None else None
        self._read_at = now
        measured = [self._measure(pid, elapsed, since_boot) for pid in list(self._known)]
        running = [process for process in measured if process]
        processes = tuple(sorted(running, key=lambda process: (-process.uptime_seconds, process.pid)))
        return Reading(processes, snapshot=self._snapshot(processes))

    def close(self) -> None:
        """Do nothing: nothing is kept open."""

    def _snapshot(self, processes: tuple[LlamaProcess, ...]) -> dict[str, SqlValue]:
        """Return the columns of `metrics`: unknown if the process of the monitored server is not visible.

        It may run on another machine, in a container, or with another name, and /proc may hide it. Then the
        processes that are visible are others, and only a refused connection shows that no server runs: see
        `LlamaServerSource`.
        """
        server = process_at(self._url, processes) if self._url else None
        if server is None and self._url:
            return {}
        return self.usage_of(processes, server)

    def usage_of(
        self, processes: Sequence[LlamaProcess], server: LlamaProcess | None = None
    ) -> dict[str, SqlValue]:
        """Return the columns of `metrics` about some processes: 0 if there are none.

        Args:
            processes: the processes, the one that has run longest first.
            server: the one whose uptime counts; None for the first one.
        """
        first = server or next(iter(processes), None)
        shares = [process.cpu_usage for process in processes]
        memory = 100 * sum(process.resident_bytes for process in processes) / self._memory_bytes
        return {
            "cpu_usage": None if None in shares else min(100.0, float(sum(share or 0 for share in shares))),
            "memory_usage": min(100.0, memory),
            "uptime": first.uptime_seconds if first else 0.0,
        }

    def _find(self) -> None:
        """Find processes of that name among the new ones, and among those that were new in the last reading.

        A new process may be read between fork and exec, when it still has the name of its parent.
        """
        present = set(psutil.pids())
        new = present - self._present
        candidates = new | self._new
        if time.monotonic() - self._searched_at >= FULL_SEARCH_SECONDS:
            self._searched_at, candidates = time.monotonic(), present
        for pid in candidates & present - self._known.keys():
            started_since_last_reading = pid in new and self._read_at is not None
            with suppress(psutil.Error):  # it has ended, or /proc hides processes of other users
                process = psutil.Process(pid)
                if process.name() == self._process_name and process.status() != psutil.STATUS_ZOMBIE:
                    self._known[pid] = _Tracked(process, 0.0 if started_since_last_reading else None)
        self._present, self._new = present, new

    def _measure(self, pid: int, elapsed: float | None, since_boot: float) -> LlamaProcess | None:
        tracked = self._known[pid]
        try:
            with tracked.process.oneshot():
                times = tracked.process.cpu_times()
                resident = tracked.process.memory_info().rss
                started_at = tracked.process.create_time()
                ended = tracked.process.status() == psutil.STATUS_ZOMBIE
            if ended or not tracked.process.is_running():
                raise psutil.NoSuchProcess(pid)
        except psutil.Error:
            del self._known[pid]
            self._present.discard(pid)  # another process may already have this process id
            return None
        cpu_seconds = times.user + times.system
        return LlamaProcess(
            pid,
            started_at,
            tracked.usage(cpu_seconds, elapsed, self._cores),
            cpu_seconds,
            resident,
            tracked.arguments,
            tracked.may_sleep,
            tracked.uptime_seconds(since_boot),
            tracked.started_boot_seconds,
            self._boot_id,
        )


class _Tracked:
    """One process, from reading to reading.

    Args:
        process: the process.
        cpu_seconds: its processor time at the previous reading; 0 if it started since, None if not known.
    """

    def __init__(self, process: psutil.Process, cpu_seconds: float | None) -> None:
        self.process = process
        self._cpu_seconds = cpu_seconds
        self.arguments = _arguments(process)
        self.may_sleep = _may_sleep(process, self.arguments)
        # `create_time` is the start since boot, plus `boot_time` by the current wall clock: the difference
        # does not depend on that clock.
        self.started_boot_seconds = round(process.create_time() - psutil.boot_time(), 2)

    def uptime_seconds(self, since_boot: float) -> float:
        return max(0.0, since_boot - self.started_boot_seconds)

    def usage(self, cpu_seconds: float, elapsed: float | None, cores: int) -> float | None:
        """Return the percentage of all cores since the previous reading; None if it is not known."""
        before, self._cpu_seconds = self._cpu_seconds, cpu_seconds
        if before is None or not elapsed:
            return None
        return min(100.0, max(0.0, 100 * (cpu_seconds - before) / elapsed / cores))


def _arguments(process: psutil.Process) -> tuple[str, ...]:
    try:
        # Names of files may be any bytes; a database stores only what UTF-8 can express.
        return tuple(os.fsencode(argument).decode("utf-8", "replace") for argument in process.cmdline())
    except psutil.Error:
        return ()


def _may_sleep(process: psutil.Process, arguments: tuple[str, ...]) -> bool:
    """Return False only if command line and environment can be read, and neither enables sleeping."""
    if not arguments or option(arguments, SLEEP_OPTION):
        return True
    try:
        return SLEEP_VARIABLE in process.environ()
    except psutil.Error:
        return True
