"""Whether /metrics of a model may be read now without waking the model or keeping it awake."""

from collector.parsers.server_answers import Props
from collector.sources.llama.local.process import LlamaProcess

FIRST_HARMLESS_BUILD = 10531
"""First build whose /metrics neither wakes a sleeping model nor restarts its idle timer when it is read."""

ACTIVE_CPU_SECONDS = 0.0199
"""Processor time since the previous sample that counts as activity: two steps of the kernel's clock of 10 ms.

The collector's own request costs the server less than 1 ms. It may move the clock by one step, never by two.
"""


class IdleGuard:
    """Decides in each sample whether /metrics of a model may be read.

    On new builds, and on builds that never sleep, it may always be read. On other builds, reading it restarts
    the idle timer of the model. So it is read only while the process uses processor time: then it is awake
    and busy anyway. After that it is read once more, because llama-server counts the tokens of a request at
    its end.

    Example with an old build, sampled every 5 s: a request is processed during three samples. /metrics is
    read in these three and in the next one, then not until another request comes. So the model goes to sleep
    at most one interval later than without the collector.

    It is also read once at first, while the model is awake. Without that first value, the growth of the
    counters until the first activity was read would not be known.

    Args:
        props: answer of /props of the process.
        is_new: whether the process started since the previous sample. Then loading the model counts as
            activity.
    """

    def __init__(self, props: Props, *, is_new: bool) -> None:
        known_harmless = props.build is not None and props.build >= FIRST_HARMLESS_BUILD
        self.is_harmless = known_harmless or not props.can_sleep
        """Whether /metrics can always be read."""
        self._cpu_seconds: float | None = 0.0 if is_new else None
        self._reads_left = 1
        self._process: tuple[int, float] | None = None  # the one that was visible last

    def may_read(self, process: LlamaProcess | None) -> bool:
        """Return whether to read /metrics in this sample.

        The caller calls `record_read` if reading succeeded. Otherwise the next sample tries again.

        Args:
            process: process of the model; None if it is not visible now.
        """
        if self.is_harmless:
            return True
        if process is None:
            return False
        before, self._cpu_seconds = self._cpu_seconds, process.cpu_seconds
        last, self._process = self._process, (process.pid, process.started_boot_seconds)
        if last not in (None, self._process):
            before = 0.0  # it replaced another process since then, and used CPU time to load its model
        if before is not None:
            used = process.cpu_seconds - before
            if used >= ACTIVE_CPU_SECONDS or used < 0:  # less than before: it is another process
                self._reads_left = 2  # now, and once more when it is idle
        return self._reads_left > 0

    def record_read(self) -> None:
        """Record that /metrics was read in this sample."""
        self._reads_left = max(0, self._reads_left - 1)
