"""Joins the lines of the log that tell of one request: a state machine for each process that writes the log.

    selected → launch → (prompt, cached, shift, progress) → timings → release
                     ↘ cancel, error → release without timings

The state is small (a few kilobytes) and stored with the position of the log, in the transaction of the lines
and rows, so that a request is one row whenever the collector is killed.

A log is text, and text is lost or disordered: a full disk, a rotation, a killed process. Therefore every task
is known by its id, and what contradicts it ends it:

- another task begins in its slot: its end was lost. It waits for the end until the next call, because lines
  may be out of order (`copytruncate`);
- the process ends or begins anew: so did the task;
- its end comes without its beginning: the row has what is known.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from collector.parsers.log.record import Record
from collector.parsers.log.time import RESTART_SECONDS
from collector.parsers.requests.access import AccessLog
from collector.parsers.requests.lines import (
    Access,
    Arrival,
    Cached,
    Cancel,
    EarlyCached,
    EarlyRelease,
    EarlyTimings,
    Event,
    Failure,
    Launch,
    ModelPath,
    ProcessEnd,
    Prompt,
    Release,
    Selected,
    Shift,
    Timings,
    parse_event,
)
from collector.parsers.requests.request import Request, finish, known_fields, usable_number

MAX_OPEN = 1024
"""Open tasks of one process; llama-server has fewer slots. A hostile log cannot make the state larger."""

MAX_PROCESSES = 64
"""Processes of one log: a router and its children."""

MAX_REMEMBERED = 256
"""Ids of cancelled and failed tasks, and arrivals, that are kept until their task begins."""

MAX_ERROR_CHARACTERS = 500

_IDLE_SECONDS = 1.0

MAX_QUEUE_SECONDS = 600.0
"""An arrival that is older belongs to no request that begins now."""


StoredRequests = dict[str, Any]
"""The open tasks of each process, by port as text."""


@dataclass(slots=True)
class _Process:
    """State of one process.

    Attributes:
        open: its tasks by id.
        selected: similarity and kept share by slot, until its task begins.
        cancelled: ids of tasks whose client left before they began.
        errors: text by id of tasks that failed before they began.
        arrivals: Unix seconds at which the router passed a request on.
        timings: durations of tasks that are about to be released, of builds that do not say which.
        last_stamp: of its newest record; None = its records have no stamps.
        last_time: Unix seconds of its newest record.
        model: name of the file that it has loaded; None = not seen.
        access: its access log.
    """

    open: dict[int, Request] = field(default_factory=dict)
    selected: dict[int, tuple[float, float | None]] = field(default_factory=dict)
    cancelled: list[int] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)
    arrivals: list[float] = field(default_factory=list)
    timings: list[dict[str, Any]] = field(default_factory=list)
    last_stamp: float | None = None
    last_time: float = 0.0
    model: str | None = None
    access: AccessLog = field(default_factory=AccessLog)

    @classmethod
    def restored(cls, stored: dict[str, Any]) -> Self:
        """Return the state that `asdict` made this of; what only another version knows is left out.

        Raises:
            AttributeError, OverflowError, TypeError, ValueError: it is not such a state.
        """
        access = AccessLog.restored(stored.get("access", {}))
        process = cls(**known_fields(cls, stored | {"access": access}))
        process.open = {
            int(task): Request(**known_fields(Request, one)) for task, one in process.open.items()
        }
        process.selected = {
            int(slot): (usable_number(float(similar)), None if kept is None else usable_number(float(kept)))
            for slot, (similar, kept) in process.selected.items()
        }
        process.errors = {int(task): str(text) for task, text in process.errors.items()}
        process.cancelled = [int(task) for task in process.cancelled]
        process.arrivals = [usable_number(float(time)) for time in process.arrivals]
        return process


class RequestTracker:
    """The requests of one log.

    Args:
        stored: what `to_store` returned when the log was read last.
    """

    def __init__(self, stored: StoredRequests | None = None) -> None:
        try:
            self._processes = {int(port): _Process.restored(value) for port, value in (stored or {}).items()}
        except (AttributeError, OverflowError, TypeError, ValueError):
            # Not the state of any version: another program wrote into the row. The open requests are lost,
            # but no line and no later request.
            self._processes = {}

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the tracker whose state is a text; a new one where the text is not JSON."""
        try:
            return cls(json.loads(text))
        except ValueError:
            return cls()

    def to_store(self) -> StoredRequests:
        """Return the state for JSON; empty where nothing is open and nothing remembered."""
        return {
            str(port): asdict(process)
            for port, process in self._processes.items()
            if process != _Process(last_time=process.last_time)
        }

    def add(self, records: Sequence[Record], times: Sequence[float]) -> list[Request]:
        """Return the requests that end with some records.

        Args:
            records: of the log, in their order.
            times: Unix seconds of each.
        """
        ended = [request for process in self._processes.values() for request in _end_superseded(process)]
        for record, time in zip(records, times, strict=True):
            process = self._processes.get(record.port)
            if process is None:
                ended += self._forget_a_process()
                process = self._processes[record.port] = _Process()
            if record.stamp is not None:
                if process.last_stamp is not None and record.stamp < process.last_stamp - RESTART_SECONDS:
                    ended += self._end_process(record.port)
                    process = self._processes[record.port]
                process.last_stamp = record.stamp
            elif process.last_stamp is not None:
                # The process writes stamps, so this is text of others, unless it is the first line of a
                # process that writes none.
                if not isinstance(parse_event(record.message), ModelPath):
                    continue
                ended += self._end_process(record.port)
                process = self._processes[record.port]
            done = _end_released(process, record) if process.open else []
            process.last_time = time
            event = parse_event(record.message)
            if event is not None:
                done += self._apply(event, record, process, time)
            line = event if isinstance(event, Access) else None
            if line or (process.access.is_printed and not isinstance(event, ModelPath | ProcessEnd)):
                done = process.access.add(done, line, process.open.values())
            ended += done
        return ended

    def end(self) -> list[Request]:
        """Return the requests that have ended and wait for more lines, of a log that has ended."""
        return [request for process in self._processes.values() for request in process.access.end()]

    def _forget_a_process(self) -> list[Request]:
        """Make room for another process if there are too many; return the requests that were open.

        A router gives each child a new port, and not every child's end is seen.
        """
        if len(self._processes) < MAX_PROCESSES:
            return []
        port = min(
            self._processes, key=lambda one: (bool(self._processes[one].open), self._processes[one].last_time)
        )
        ended = list(self._end_process(port))
        del self._processes[port]
        return ended

    def _apply(self, event: Event, record: Record, process: _Process, time: float) -> Iterable[Request]:
        """Change the state by an event; return the requests that it ends."""
        ended: Iterable[Request] = ()
        match event:
            case Launch():
                self._launch(event, record, process, time)
            case Release():
                ended = _release(event, record, process, time)
            case Prompt() | Cached() | Shift() | Timings():
                request = _task(process, record.port, event.task, event.slot)
                ended = _add_facts(event, request, process)
            case EarlyCached() | EarlyTimings() | EarlyRelease():
                ended = _apply_early(event, process, time)
            case Cancel() | Failure() | Selected():
                _mark(event, process)
            case Arrival():
                ended = [] if event.port in self._processes else self._forget_a_process()
                child = self._processes.setdefault(event.port, _Process())
                if not child.open:  # an idle child begins at once: what still waits has lost its beginning
                    child.arrivals = [at for at in child.arrivals if time - at < _IDLE_SECONDS]
                child.arrivals = [*child.arrivals, time][-MAX_REMEMBERED:]
            case ModelPath():
                ended = list(self._end_process(record.port))
                self._processes[record.port].model = model_name(event.path)
            case ProcessEnd():
                ended = list(self._end_process(event.port or record.port))
        return ended

    def _launch(self, event: Launch, record: Record, process: _Process, time: float) -> None:
        """Open a task."""
        for other in process.open.values():
            if other.slot == event.slot and other.task != event.task:
                other.is_superseded = True
        request = _task(process, record.port, event.task, event.slot)
        request.started_at = time
        request.has_stamp = record.stamp is not None or record.time is not None
        request.is_child, request.model = event.is_child, process.model
        if event.task in process.cancelled:
            request.cancelled = True
            process.cancelled.remove(event.task)
        request.error = request.error or process.errors.pop(event.task, None)
        request.slot_similarity, request.slot_kept_share = process.selected.pop(event.slot, (None, None))
        if event.is_child:
            request.parent_task = None
        else:
            for other in process.open.values():
                if other.is_child and other.parent_task is None and event.task < other.task:
                    other.parent_task = event.task
            # The times of a router and of its child are exact to some milliseconds only.
            process.arrivals = [at for at in process.arrivals if time - at <= MAX_QUEUE_SECONDS]
            if process.arrivals:
                request.queue_ms = max(0.0, 1000 * (time - process.arrivals.pop(0)))
        running = [one for one in process.open.values() if not one.is_superseded and not one.is_released]
        for one in running:
            one.other_requests = max(one.other_requests or 0, len(running) - 1)

    def _end_process(self, port: int) -> Iterator[Request]:
        """Yield the open requests of a process that has ended."""
        process = self._processes.pop(port, None)
        if process is None:
            return
        kept = _Process(arrivals=process.arrivals) if port else _Process()
        self._processes[port] = kept
        yield from process.access.end()
        for request in process.open.values():
            request.ended_at = process.last_time
            yield finish(
                request, "" if request.is_released else "lost" if request.is_superseded else "server_ended"
            )


def model_name(path: str) -> str:
    """Return the name of a model's file, without directory and ending."""
    name = path.replace("\\", "/").rpartition("/")[2]
    return name.removesuffix(".gguf") or path


def _task(process: _Process, port: int, task: int, slot: int) -> Request:
    """Return an open task; one whose beginning was not seen is opened."""
    request = process.open.get(task)
    if request is None:
        if len(process.open) >= MAX_OPEN:
            process.open.pop(next(iter(process.open)))
        request = process.open[task] = Request(port=port, task=task, slot=slot)
    return request


def _apply_early(
    event: EarlyCached | EarlyTimings | EarlyRelease, process: _Process, time: float
) -> Iterable[Request]:
    """Apply a line of a build that names tasks only where they begin; return the request that it ends.

    Tasks are released in the order in which their durations were printed.
    """
    if isinstance(event, EarlyTimings):
        if len(process.open) == 1 and not process.timings:
            (only,) = process.open.values()
            _add_timings(event, only)
            return ()
        if "prompt eval" in event.values or not process.timings:
            process.timings = [*process.timings, {}][-MAX_OPEN:]
        process.timings[-1].update(event.values)
        return ()
    request = next((one for one in process.open.values() if one.slot == event.slot), None)
    if request is None:
        return ()
    if isinstance(event, EarlyCached):
        request.cached_tokens = event.tokens if request.cached_tokens is None else request.cached_tokens
        return ()
    if process.timings:
        _add_timings(EarlyTimings(process.timings.pop(0)), request)
    request.ended_at = time
    del process.open[request.task]
    return (finish(request),)


def _add_facts(
    event: Prompt | Cached | Shift | Timings, request: Request, process: _Process
) -> Iterable[Request]:
    """Add what a line says of an open task; durations that follow the release end it."""
    match event:
        case Prompt():
            request.prompt_tokens = event.tokens
        case Cached():
            if request.cached_tokens is None:  # the first line says what was found, later ones what is kept
                request.cached_tokens = event.tokens
        case Shift():
            request.shifted_tokens += event.tokens
        case Timings():
            _add_timings(event, request)
    if request.is_released and request.total_ms is not None:
        del process.open[request.task]
        return (finish(request),)
    return ()


def _add_timings(event: Timings | EarlyTimings, request: Request) -> None:
    """Add durations and counts."""
    for name, (value, count) in event.values.items():
        match name:
            case "prompt eval":
                request.prompt_ms, request.processed_tokens = value, count
            case "eval":
                request.generation_ms, request.generated_tokens = value, count
            case "total":
                request.total_ms = value
            case "draft":
                request.accepted_tokens, request.drafted_tokens = int(value), count


def _mark(event: Cancel | Failure | Selected, process: _Process) -> None:
    """Mark a task as cancelled or failed, or a slot as selected; a task that has not begun is remembered."""
    if isinstance(event, Selected):
        process.selected[event.slot] = event.similarity, event.kept_share
        return
    request = process.open.get(event.task)
    if isinstance(event, Cancel):
        if request:
            request.cancelled = True
        else:
            process.cancelled = [*process.cancelled, event.task][-MAX_REMEMBERED:]
        return
    error = event.error.partition("\n")[0][:MAX_ERROR_CHARACTERS]
    if request:
        request.error = error
    else:
        process.errors = dict([*process.errors.items(), (event.task, error)][-MAX_REMEMBERED:])


def _release(event: Release, record: Record, process: _Process, time: float) -> Iterable[Request]:
    """End a task, unless its durations follow."""
    request = _task(process, record.port, event.task, event.slot)
    request.ended_at, request.context_tokens, request.truncated = time, event.context_tokens, event.truncated
    if event.timings_follow and request.total_ms is None:
        request.is_released = True
        return ()
    del process.open[event.task]
    return (finish(request),)


def _end_released(process: _Process, record: Record) -> list[Request]:
    """End tasks whose durations did not follow their release: another record of the process came."""
    if " print_timing" in record.message:
        return []
    ended = [one for one in process.open.values() if one.is_released]
    for one in ended:
        del process.open[one.task]
    return [finish(one) for one in ended]


def _end_superseded(process: _Process) -> list[Request]:
    """End tasks whose slot has another task since an earlier call."""
    ended = [one for one in process.open.values() if one.is_superseded and not one.is_released]
    for one in ended:
        del process.open[one.task]
    return [finish(one, "lost") for one in ended]
