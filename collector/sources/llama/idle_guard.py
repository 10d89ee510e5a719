"""When /metrics of a model can be read without keeping the model awake or waking it."""

from collector.parsers.server_answers import Props
from collector.sources.llama.processes import LlamaProcess

FIRST_HARMLESS_BUILD = 10531
"""From here on, reading /metrics neither wakes a sleeping model nor restarts its idle timer."""

ACTIVE_CPU_SECONDS = 0.0199
"""Processor time since the last sample that counts as activity: two steps of the kernel's clock. Our own
request costs the server less than 1 ms, which moves the clock by one step now and then, never by two."""


class IdleGuard:
    """Decides in every sample whether a model's /metrics may be read.

    Always where reading is harmless. Else only while the process works, and once more after it became idle,
    when the counters contain all that it did. An example with an old build: a request runs for three samples;
    those three are read and the one after them, then none until the next request.

    Args:
        props: what the model's server says of itself.
        is_new: whether its process started since the last sample: then it worked to load its model.
    """

    def __init__(self, props: Props, *, is_new: bool) -> None:
        known_harmless = props.build is not None and props.build >= FIRST_HARMLESS_BUILD
        self.is_harmless = known_harmless or not props.can_sleep
        """Whether a reading neither wakes a model nor keeps it awake."""
        self._cpu_seconds: float | None = 0.0 if is_new else None
        self._wanted_reads = 1 if is_new else 0
        self._process: tuple[int, float] | None = None  # of the last sample in which it was seen

    def may_read(self, process: LlamaProcess | None) -> bool:
        """Return whether to read in this sample. Call `has_read` after a success: else it is tried again.

        Args:
            process: the model's; None where it cannot be seen just now.
        """
        if self.is_harmless:
            return True
        if process is None:
            return False
        before, self._cpu_seconds = self._cpu_seconds, process.cpu_seconds
        last, self._process = self._process, (process.pid, process.started_boot_seconds)
        if last not in (None, self._process):
            before = 0.0  # it has replaced another one since, and worked to load its model
        if before is not None and _works(before, process.cpu_seconds):
            self._wanted_reads = _NOW_AND_ONCE_MORE
        return self._wanted_reads > 0

    def has_read(self) -> None:
        """Record that a reading succeeded."""
        self._wanted_reads = max(0, self._wanted_reads - 1)


_NOW_AND_ONCE_MORE = 2


def _works(before: float, cpu_seconds: float) -> bool:
    """Return whether a process worked between two samples; less time than before means a new process."""
    return cpu_seconds < before or cpu_seconds - before >= ACTIVE_CPU_SECONDS
