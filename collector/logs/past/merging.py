"""Add requests of the past to the table: those that are not in it yet."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from collector.database.repositories.base import Connected
from collector.logs.position import Models
from collector.logs.rows.requests import REQUESTS, Origin, request_rows
from collector.parsers.requests.request import Request

TOLERANCE_SECONDS = 5.0
"""How far the ends of one request may be apart, as two ways of reading its log computed them."""

_MIN_VOTES = 3
"""So many requests without durations must agree on the start of their process."""

_COMPARED = ("task", "slot", "total_ms", "prompt_ms", "generation_ms", "context_tokens", "truncated")
_COMPARED_IF_TIMED = ("processed_tokens", "generated_tokens")


def same_request(row: str, other: Callable[[str], str]) -> str:
    """Return the SQL condition that the lines of two requests are the same: slot, task, durations, release.

    What no line states, because it follows from others, is not compared: a reading may have missed these.

    Args:
        row: name of the table with the one.
        other: returns SQL of a value of the other, given the name of its column.
    """
    exact = " AND ".join(f"{row}.{name} IS {other(name)}" for name in _COMPARED)
    timed = " AND ".join(f"{row}.{name} IS {other(name)}" for name in _COMPARED_IF_TIMED)
    port = f"{row}.port IS {other('port')} OR {row}.port IS NULL OR {other('port')} IS NULL"
    return f"{exact} AND ({row}.total_ms IS NULL OR ({timed})) AND ({port})"


_PARAMETERS = (*_COMPARED, *_COMPARED_IF_TIMED, "port")
_FIND = f"""SELECT id, ended_at FROM requests
    WHERE {same_request("requests", lambda name: f"?{_PARAMETERS.index(name) + 1}")}
    AND id <= ?{len(_PARAMETERS) + 1} ORDER BY id"""  # noqa: S608 - our own names


@dataclass(slots=True)
class ProcessTimes:
    """When a process of the past started: the times of its requests count from there.

    Attributes:
        start: Unix seconds; None if it is not known. 0 where times are Unix seconds already.
        source: `requests.time_source` of times that are computed with it.
        is_final: whether rows that are there already are not asked for a better start.
    """

    start: float | None
    source: str
    is_final: bool = False


@dataclass(slots=True)
class MergeSummary:
    """What became of requests of the past.

    Attributes:
        added: new rows.
        known: requests that were there already.
        too_old: requests beyond the retention.
        without_time: new rows whose time is not known.
    """

    added: int = 0
    known: int = 0
    too_old: int = 0
    without_time: int = 0


class RequestMerge:
    """Adds the requests of one file, journal or table.

    A request is there already if a row has the same slot, task, durations and release. Durations have
    hundredths of milliseconds, so that equal ones are the same request, whatever the clocks said. Requests
    without durations (embeddings, cancelled ones) may be equal by chance, for example the first one of each
    process. For them the times must agree as well, unless one is unknown; and each row counts for one only.

    Args:
        database: contains the table.
        origin: `requests.origin` of new rows.
        oldest: Unix seconds of the oldest request that is kept.
    """

    def __init__(self, database: Connected, origin: str, oldest: float) -> None:
        self._database = database
        self._origin = origin
        self._oldest = oldest
        self._last_id = int(database.query("SELECT max(id) AS id FROM requests")[0]["id"] or 0)
        self._used: set[int] = set()  # rows without durations that were found equal to a request
        self.summary = MergeSummary()

    def add(self, requests: Sequence[Request], models: Models, process: ProcessTimes, latest: float) -> None:
        """Add requests of one process in one transaction.

        Args:
            requests: their times count from the start of the process.
            models: of the router's children, by port.
            process: its start, which is set if rows show it.
            latest: Unix seconds at which a request without a time has ended at the latest.

        Raises:
            DatabaseError: the database cannot be read or written.
        """
        candidates = [self._find(request) for request in requests]
        if not process.is_final:
            self._find_start(process, requests, candidates)
        new = []
        for request, rows in zip(requests, candidates, strict=True):
            ended_at = _moved(request.ended_at, process.start)
            if self._is_known(request, ended_at, rows):
                self.summary.known += 1
            elif (latest if ended_at is None else ended_at) < self._oldest:
                self.summary.too_old += 1
            else:
                started_at = _moved(request.started_at, process.start)
                new.append(replace(request, started_at=started_at, ended_at=ended_at))
        timed = [one for one in new if one.ended_at is not None]
        untimed = [one for one in new if one.ended_at is None]
        added = [
            *request_rows(timed, models, latest, Origin(self._origin, process.source)),
            *request_rows(untimed, models, latest, Origin(self._origin, "unknown")),
        ]
        if added:
            with self._database.transaction() as connection:
                connection.executemany(REQUESTS.insert_statement, added)
        self.summary.added += len(added)
        self.summary.without_time += len(untimed)

    def _find(self, request: Request) -> list[dict[str, Any]]:
        """Return the rows that may be this request."""
        values = [getattr(request, name) for name in _PARAMETERS]
        values[-1] = request.port or None
        return self._database.query(_FIND, [*values, self._last_id])

    def _find_start(
        self, process: ProcessTimes, requests: Sequence[Request], candidates: Sequence[list[dict[str, Any]]]
    ) -> None:
        """Set the start of a process to what most rows of its requests say.

        Example: the file was copied, and has the time of the copy; the requests were read when the server
        wrote them, and have the right times.
        """
        process.is_final = True
        votes: dict[bool, list[float]] = {True: [], False: []}
        for request, rows in zip(requests, candidates, strict=True):
            if request.ended_at is not None:
                votes[request.total_ms is not None] += [
                    row["ended_at"] - request.ended_at for row in rows if row["ended_at"] is not None
                ]
        for is_distinctive, least in ((True, 1), (False, _MIN_VOTES)):
            seconds = Counter(round(start) for start in votes[is_distinctive])
            if seconds and (most := seconds.most_common(1)[0])[1] >= least:
                near = [start for start in votes[is_distinctive] if abs(start - most[0]) <= 1]
                process.start, process.source = median(near), "stamp"
                return

    def _is_known(self, request: Request, ended_at: float | None, rows: list[dict[str, Any]]) -> bool:
        """Return whether one of the rows is this request."""
        if request.total_ms is not None:
            return bool(rows)
        for row in rows:
            is_near = (
                ended_at is None
                or row["ended_at"] is None
                or abs(row["ended_at"] - ended_at) <= TOLERANCE_SECONDS
            )
            if is_near and row["id"] not in self._used:
                self._used.add(row["id"])
                return True
        return False


def _moved(moment: float | None, start: float | None) -> float | None:
    """Return the Unix seconds of a moment of a process; None if one of the two is not known."""
    return None if moment is None or start is None else moment + start
