"""One request: what is known of it, and what follows from that at its end."""

from dataclasses import dataclass, fields
from functools import cache
from typing import Any, get_origin, get_type_hints


@dataclass(slots=True)
class Request:
    """One task, while it is open and after it has ended. None = not reported.

    Attributes:
        port: of the router's child; 0 for the process that owns the log.
        slot: number of its slot.
        task: its id in its process.
        parent_task: the task whose prompt it shares.
        started_at, ended_at: Unix seconds.
        has_stamp: whether these come from stamps; otherwise they are times of arrival.
        outcome: how it ended; empty while it is open.
        prompt_tokens … truncated: as in the table `requests`.
        cancelled: the client left.
        error: text of the error.
        model: name of the model's file.
        method, path, client, status: of the HTTP request.
    """

    port: int
    task: int
    model: str | None = None
    slot: int | None = None
    parent_task: int | None = None
    started_at: float | None = None
    ended_at: float | None = None
    has_stamp: bool = False
    outcome: str = ""
    prompt_tokens: int | None = None
    processed_tokens: int | None = None
    cached_tokens: int | None = None
    generated_tokens: int | None = None
    drafted_tokens: int | None = None
    accepted_tokens: int | None = None
    context_tokens: int | None = None
    shifted_tokens: int = 0
    truncated: bool | None = None
    queue_ms: float | None = None
    prompt_ms: float | None = None
    generation_ms: float | None = None
    total_ms: float | None = None
    other_requests: int | None = 0
    slot_similarity: float | None = None
    slot_kept_share: float | None = None
    cancelled: bool = False
    error: str | None = None
    method: str | None = None
    path: str | None = None
    client: str | None = None
    status: int | None = None
    is_child: bool = False
    is_superseded: bool = False
    is_released: bool = False


def known_fields(kind: type[Any], stored: Any) -> dict[str, Any]:
    """Return the stored values whose names are fields of a dataclass.

    Raises:
        TypeError: a value is not of the field's type.
        ValueError: a number is infinite, none, or larger than SQLite's integers.
    """
    types = _types_of_fields(kind)  # type: ignore[arg-type]  # mypy does not see that a class is hashable
    values = {name: stored[name] for name in types if name in stored}
    for name, value in values.items():
        if not isinstance(value, types[name]):
            raise TypeError(f"{kind.__name__}.{name}: {type(value).__name__}")
        if isinstance(value, (int, float)):
            usable_number(value)
    return values


def usable_number(value: float) -> float:
    """Return a stored number that can be computed with and written as a column.

    Raises:
        ValueError: it is infinite, no number, or larger than SQLite's integers.
    """
    if not abs(value) < 2**63:  # false for NaN as well
        raise ValueError(f"{value!r} is not a number of a request")
    return value


@cache
def _types_of_fields(kind: type[Any]) -> dict[str, Any]:
    """Return what `isinstance` accepts for each field of a dataclass. A whole number is a float as well."""
    hints = get_type_hints(kind)
    types = {one.name: hints[one.name] for one in fields(kind)}
    for name, hint in types.items():
        if get_origin(hint) in (dict, list):
            types[name] = get_origin(hint)
        elif hint in (float, float | None):
            types[name] = hint | int
    return types


def finish(request: Request, outcome: str = "") -> Request:
    """Set the outcome and the counts that follow from the others."""
    if outcome:
        request.outcome = outcome
    elif request.error is not None:
        request.outcome = "error"
    elif request.started_at is None:
        request.outcome = "incomplete"
    elif request.total_ms is not None:
        request.outcome = "finished"
    else:
        request.outcome = "cancelled" if request.cancelled else "no_generation"
    if request.started_at is None:
        request.other_requests = None  # what ran beside its beginning was not seen
    _complete_tokens(request)
    return request


def _complete_tokens(request: Request) -> None:
    """Set the counts of tokens that no line states.

    At the end the slot holds the prompt and all generated tokens but the last one, less what was shifted out.
    So what is neither processed nor generated was cached.
    """
    if request.outcome == "error":
        # The slot still holds the prompt before.
        request.context_tokens = request.truncated = None
        return
    held = request.context_tokens
    if held is None:  # builds until February 2024 say what was cached, and count what is held differently
        if request.processed_tokens is not None and request.cached_tokens is not None:
            request.prompt_tokens = request.processed_tokens + request.cached_tokens
        return
    held += request.shifted_tokens
    processed, generated = request.processed_tokens, request.generated_tokens
    if processed is not None and generated is not None:
        request.cached_tokens = max(0, held - processed - generated + 1)
        request.prompt_tokens = processed + request.cached_tokens
    elif request.outcome == "no_generation":
        request.processed_tokens = request.prompt_tokens = held
    elif request.prompt_tokens is not None:
        request.generated_tokens = max(0, held - request.prompt_tokens + 1)
        if held < request.prompt_tokens:
            request.generated_tokens = 0
        elif request.cached_tokens is not None:
            request.processed_tokens = request.prompt_tokens - request.cached_tokens
