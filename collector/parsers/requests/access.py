"""Which line of the access log belongs to which request.

Builds from 2024 to b9093, and later ones at `-lv 4`, print `done request: POST /completion 127.0.0.1 200` for
each HTTP request, without the id of its task, shortly before or after the task is released. So a request that
has ended waits for its line. When several have ended and their lines differ, nobody can say whose is whose,
and they stay without. A call with several prompts is several tasks with one line; they wait until no more can
be expected. A line that comes while no task has ended, or is about to, is of a call without a task.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

from collector.parsers.requests.lines import Access
from collector.parsers.requests.request import Request, known_fields

MAX_RECORDS = 20
"""A request waits for its line until its process has printed so many other records."""

_FAILED = 400
_TASK_PATHS = {
    *("completion", "completions", "infill", "messages", "responses"),
    *("embedding", "embeddings", "rerank", "reranking"),
}
"""Last parts of the paths whose calls become tasks."""


@dataclass(slots=True)
class AccessLog:
    """The requests of a process that wait for their lines, and the lines that wait for their requests.

    Attributes:
        is_printed: whether the process prints such lines; nothing waits before the first one was read.
        waiting: requests that have ended.
        lines: as lists, for JSON; each belongs to a waiting request, or to one that is about to end.
        records: how many records were read since something waits.
    """

    is_printed: bool = False
    waiting: list[Request] = field(default_factory=list)
    lines: list[list[Any]] = field(default_factory=list)
    records: int = 0

    @classmethod
    def restored(cls, stored: dict[str, Any]) -> Self:
        """Return the state that `asdict` made this of.

        Raises:
            AttributeError, OverflowError, TypeError, ValueError: it is not such a state.
        """
        log = cls(**known_fields(cls, stored))
        log.waiting = [Request(**known_fields(Request, one)) for one in log.waiting]
        log.lines = [
            list(Access(str(method), str(path), str(client), int(status)))
            for method, path, client, status in log.lines
        ]
        return log

    def add(self, ended: list[Request], line: Access | None, running: Iterable[Request]) -> list[Request]:
        """Return the requests whose wait is over after a record.

        Args:
            ended: requests that end with the record.
            line: the record, if it is a line of the access log.
            running: the open tasks of the process.
        """
        was_printed, self.is_printed = self.is_printed, self.is_printed or line is not None
        if not was_printed:
            return ended
        self.waiting += ended
        if not self.waiting and line is None:
            return []
        # A task whose durations were printed is about to end: a line may be its own.
        is_ending = any(one.total_ms is not None or one.cancelled or one.error for one in running)
        if line and (self.waiting or is_ending) and _is_of_task(line):
            self.lines = [*self.lines, list(line)][-MAX_RECORDS:]
        if not self.waiting:
            return []
        self.records += 1
        done = []
        if not is_ending:
            done = [one for failed in (False, True) for one in self._pair(failed=failed)]
        if self.records > MAX_RECORDS:
            done += self.end()
        elif not self.waiting:
            self.records = 0
        return done

    def end(self) -> list[Request]:
        """Return all requests that wait: no more lines of theirs are to be expected."""
        waiting = [one for failed in (False, True) for one in self._pair(failed=failed, is_last=True)]
        self.lines, self.records = [], 0
        return waiting

    def _pair(self, *, failed: bool, is_last: bool = False) -> list[Request]:
        """Give the waiting requests their lines if it is certain whose these are, and return them.

        Args:
            failed: whether it is about those with an error, and about lines with its status.
            is_last: whether they are returned even if lines are missing.
        """
        waiting = [one for one in self.waiting if (one.error is not None) == failed]
        lines = [line for line in self.lines if (line[3] >= _FAILED) == failed]
        if not waiting or (len(lines) != sum(not one.is_child for one in waiting) and not is_last):
            return []
        if lines and all(line == lines[0] for line in lines):
            for one in waiting:
                one.method, one.path, one.client, one.status = lines[0]
        self.waiting = [one for one in self.waiting if one not in waiting]
        self.lines = [line for line in self.lines if line not in lines]
        return waiting


def _is_of_task(line: Access) -> bool:
    """Return whether calls of this kind become tasks."""
    return line.method == "POST" and line.path.rpartition("/")[2] in _TASK_PATHS
