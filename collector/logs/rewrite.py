"""Detection of a log file that was rewritten to exactly the size that was read of it."""

import os

SUSPICION_SECONDS = 0.9
"""A file has the same size and another time of change for this long before it counts as rewritten."""


class RewriteDetector:
    """The times of change of one file that has no bytes after the position.

    llama-server opens its `--log-file` with "w" at each start, and two short runs may leave files of exactly
    the same size. Then only the time of the last change shows that there are new lines. It alone is no
    proof:

    - A write that is under way has changed the time and not yet the size. Therefore the state must last.
    - `touch` and backup programs set the time without writing. Then the content is the same, which the
      caller must check: a run that leaves byte for byte the same log is taken for that.

    Args:
        modified_ns: time of the file's last change.
    """

    def __init__(self, modified_ns: int) -> None:
        self._modified_ns = modified_ns
        self._suspected_ns: int | None = None
        self._suspected_at = 0.0

    def record_read(self, modified_ns: int) -> None:
        """Record that the file was read after its last change at this time."""
        self._modified_ns = modified_ns

    def reset(self) -> None:
        """Drop the suspicion: the file is read from its beginning."""
        self._suspected_ns = None

    def is_rewritten(self, status: os.stat_result, now: float) -> bool:
        """Return whether the file was rewritten, in a state that has lasted for a while.

        Args:
            status: of the file, whose size is the offset up to which it was read.
            now: monotonic seconds.
        """
        modified_ns = status.st_mtime_ns
        if modified_ns == self._modified_ns:
            return False
        if modified_ns != self._suspected_ns:
            self._suspected_ns, self._suspected_at = modified_ns, now
            return False
        return now - self._suspected_at >= SUSPICION_SECONDS and modified_ns == status.st_ctime_ns
