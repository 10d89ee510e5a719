"""When /metrics of a model may be read without keeping the model awake, or waking it."""

from collector.parsers.server_answers import Props
from collector.sources.llama.processes import LlamaProcess

FIRST_HARMLESS_BUILD = 10531
"""From here on, reading /metrics neither wakes a sleeping model nor restarts its idle timer."""

ACTIVE_CPU_SECONDS = 0.0199
"""Processor time since the last look that counts as activity: two steps of the kernel's clock. Our own
reading costs the server less than 1 ms, so that it moves the clock by one step now and then, never by two."""


class IdleGuard:
    """Decides at every look whether a model's /metrics may be read.

    Where reading is harmless, always. Else only while the process works, and once more after it falls still:
    what it did in between is then in the counters.

    Args:
        props: what the model's server says of itself.
        is_new: whether its process started since the last look at the server.
    """

    def __init__(self, props: Props, *, is_new: bool) -> None:
        known_harmless = props.build is not None and props.build >= FIRST_HARMLESS_BUILD
        self.is_harmless = known_harmless or not props.can_sleep
        """Whether a reading neither wakes a model nor keeps it awake."""
        self._cpu_seconds: float | None = 0.0 if is_new else None
        self._wanted_reads = 1 if is_new else 0  # it worked to load its model

    def may_read(self, process: LlamaProcess | None) -> bool:
        """Look once; tell `has_read` when the reading succeeded, or it is tried again.

        Args:
            process: the model's; None where it cannot be seen just now.
        """
        if self.is_harmless:
            return True
        if process is None:
            return False
        before, self._cpu_seconds = self._cpu_seconds, process.cpu_seconds
        if before is not None and _works(before, process.cpu_seconds):
            self._wanted_reads = _NOW_AND_ONCE_MORE
        return self._wanted_reads > 0

    def has_read(self) -> None:
        """A reading succeeded."""
        self._wanted_reads = max(0, self._wanted_reads - 1)


_NOW_AND_ONCE_MORE = 2


def _works(before: float, cpu_seconds: float) -> bool:
    """Whether a process worked between two looks; less than before is another process, which did."""
    return cpu_seconds < before or cpu_seconds - before >= ACTIVE_CPU_SECONDS
