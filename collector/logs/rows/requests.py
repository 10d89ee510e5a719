"""The table `requests`, and its rows out of what the tracker of a log found."""

from collections.abc import Iterable
from typing import NamedTuple

from collector.logs.position import Models
from collector.parsers.requests.request import Request
from collector.schema import AUTOMATIC_ID, Column, Index, Row, Table

REQUESTS = Table(
    "requests",
    "One row per request, out of llama-server's log: what it cost, how long it took, how it ended. NULL = "
    "the build or its verbosity does not report it.",
    (
        Column("id", AUTOMATIC_ID, "key", "ascending, in the order in which the requests ended"),
        Column("timestamp", "INTEGER NOT NULL", "time", "Unix seconds at which it ended"),
        Column("run_id", "INTEGER", "key", "server_runs.id; NULL = not known, or not yet"),
        Column("server", "TEXT", "label", "server that answered: its listening address"),
        Column("model", "TEXT", "label", "name of the model on its server"),
        Column("model_id", "TEXT", "key", "models.id"),
        Column(
            "port",
            "INTEGER",
            "label",
            "of the router's child that answered; NULL = the server has no children",
        ),
        Column("slot", "INTEGER", "label", "number of the slot that processed it"),
        Column("task", "INTEGER NOT NULL", "label", "its id in its process, which counts from 0"),
        Column(
            "parent_task", "INTEGER", "label", "task of the same call whose prompt it shares (`n` above 1)"
        ),
        Column("started_at", "REAL", "time", "Unix seconds at which its slot began"),
        Column("ended_at", "REAL", "time", "Unix seconds at which its slot was free again"),
        Column(
            "time_source",
            "TEXT NOT NULL",
            "state",
            "where these times come from: stamp (start of the process and stamp of the line, or the time in "
            "the line), arrival (the line was read then), journal; of imported requests also file (as stamp; "
            "the last line is as old as its file), given (as stamp; the user said when the process ended), "
            "unknown (the request ended at `timestamp` or before)",
        ),
        Column(
            "outcome",
            "TEXT NOT NULL",
            "state",
            "finished, cancelled (the client left), error, no_generation (embeddings, reranking), "
            "server_ended (its process ended first), lost (its end is not in the log), incomplete (its "
            "beginning is not)",
        ),
        Column("prompt_tokens", "INTEGER", "increment", "tokens of its prompt: processed and cached ones"),
        Column("processed_tokens", "INTEGER", "increment", "prompt tokens that were computed"),
        Column("cached_tokens", "INTEGER", "increment", "prompt tokens that its slot held already"),
        Column("generated_tokens", "INTEGER", "increment", "tokens generated"),
        Column("drafted_tokens", "INTEGER", "increment", "tokens drafted by speculative decoding"),
        Column("accepted_tokens", "INTEGER", "increment", "drafted tokens accepted"),
        Column("context_tokens", "INTEGER", "gauge", "tokens in its slot at its end"),
        Column("shifted_tokens", "INTEGER", "increment", "tokens discarded because the context was full"),
        Column("truncated", "INTEGER", "state", "1 = the prompt or the answer was cut, 0 = it was not"),
        Column("queue_ms", "REAL", "gauge", "wait between a router and its slot, milliseconds"),
        Column("prompt_ms", "REAL", "gauge", "time to the first token, without the wait, milliseconds"),
        Column(
            "generation_ms", "REAL", "gauge", "time of all tokens after the first, milliseconds of its slot"
        ),
        Column(
            "total_ms", "REAL", "gauge", "prompt_ms and generation_ms together, as llama-server adds them"
        ),
        Column(
            "other_requests",
            "INTEGER",
            "gauge",
            "the most that ran on the same process at the same time; 0 = it ran alone",
        ),
        Column("slot_similarity", "REAL", "gauge", "share of its prompt that its slot held already, 0 to 1"),
        Column("slot_kept_share", "REAL", "gauge", "share of what its slot held that was kept, 0 to 1"),
        Column("error", "TEXT", "text", "text of the error"),
        Column("method", "TEXT", "label", "of the HTTP request, where the build prints it"),
        Column("path", "TEXT", "label", "of the HTTP request, like /v1/chat/completions"),
        Column("status", "INTEGER", "state", "of the HTTP answer"),
        Column("client", "TEXT", "label", "address of the client; only with `[logs] client_addresses`"),
        Column("conversation", "TEXT", "label", "id of the conversation; no build prints one so far"),
        Column(
            "origin",
            "TEXT",
            "state",
            "NULL = its log was read as it was written; import (the command), logs (rows of `logs` that were "
            "there before this table)",
        ),
    ),
    (
        Index("idx_requests_timestamp", "timestamp DESC"),
        Index("idx_requests_run_id", "id", "run_id IS NULL"),
        Index("idx_requests_task", "task, slot"),
        Index("idx_requests_origin", "id", "origin IS NOT NULL"),
    ),
)


class Origin(NamedTuple):
    """How requests came.

    Args:
        name: the column `origin`.
        time_source: the column of that name; None: by the stamps of their lines.
        has_clients: whether addresses of clients may be stored.
    """

    name: str | None = None
    time_source: str | None = None
    has_clients: bool = False


LOG_FILE = Origin()
"""Requests that are read from a file as they are written to it."""

JOURNAL = Origin(time_source="journal")
"""Requests that are read from the journal as they are written to it."""


def request_rows(
    requests: Iterable[Request], models: Models, now: float, origin: Origin = LOG_FILE
) -> list[Row]:
    """Return the rows of requests that have ended.

    Args:
        requests: out of a tracker.
        models: of the router's children, by port.
        now: Unix seconds, for requests whose end has no time.
        origin: how they came.
    """
    return [
        REQUESTS.row(
            {
                "timestamp": int(request.ended_at or now),
                "model": models.get(request.port) or request.model,
                "port": request.port or None,
                "slot": request.slot,
                "task": request.task,
                "parent_task": request.parent_task,
                "started_at": _rounded(request.started_at),
                "ended_at": _rounded(request.ended_at),
                "time_source": origin.time_source or ("stamp" if request.has_stamp else "arrival"),
                "outcome": request.outcome,
                "prompt_tokens": request.prompt_tokens,
                "processed_tokens": request.processed_tokens,
                "cached_tokens": request.cached_tokens,
                "generated_tokens": request.generated_tokens,
                "drafted_tokens": request.drafted_tokens,
                "accepted_tokens": request.accepted_tokens,
                "context_tokens": request.context_tokens,
                "shifted_tokens": request.shifted_tokens,
                "truncated": request.truncated,
                "queue_ms": _rounded(request.queue_ms),
                "prompt_ms": request.prompt_ms,
                "generation_ms": request.generation_ms,
                "total_ms": request.total_ms,
                "other_requests": request.other_requests,
                "slot_similarity": request.slot_similarity,
                "slot_kept_share": request.slot_kept_share,
                "error": request.error,
                "method": request.method,
                "path": request.path,
                "status": request.status,
                "client": request.client if origin.has_clients else None,
                "origin": origin.name,
            }
        )
        for request in requests
    ]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
