"""One llama-server process of this machine, as measured in one tick."""

from dataclasses import dataclass

from collector.parsers.command_line import option

DEFAULT_PORTS = (8080, 9931)
"""Ports of a server without --port: of builds up to b11434, and of later ones."""


@dataclass(frozen=True, slots=True)
class LlamaProcess:
    """One llama-server process, as measured in one tick.

    Args:
        pid: process id.
        started_at: Unix seconds of its start.
        cpu_usage: percent of all cores since the previous reading (0-100); None in the first reading.
        cpu_seconds: processor time since its start.
        resident_bytes: resident memory, including shared pages.
        arguments: command line; empty if it cannot be read.
        may_sleep: whether its model may sleep when idle; True if its options cannot be read.
        uptime_seconds: seconds since its start, by a monotonic clock.
        started_boot_seconds: its start, seconds since the boot of the host. Together with `boot_id` and `pid`
            it identifies the process, also after the wall clock was set.
        boot_id: id of the boot of the host; None if the kernel does not report it.
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
    def port(self) -> int | None:
        """TCP port of its option --port; None without it."""
        value = option(self.arguments, "--port") or ""
        return int(value) if value.isdecimal() else None
