"""/metrics of one loaded model: the rows of `llama_metrics`."""

import json

from collector.parsers.exposition import parse_exposition
from collector.parsers.server_answers import ServedModel
from collector.schema import AUTOMATIC_ID, BYTES_PER_MB, Column, Index, Row, SqlValue, Table
from collector.sources.base import Tick
from collector.sources.llama.http import Answer
from collector.sources.llama.neighbours import Neighbours
from collector.sources.llama.processes import LlamaProcess
from collector.sources.llama.token_speed import TokenSpeed

_COUNTERS = (
    Column("prompt_tokens_total", "REAL", "counter", "prompt tokens processed, without the cached ones"),
    Column(
        "prompt_tokens_cached_total", "REAL", "counter", "prompt tokens taken from the cache (from b10441)"
    ),
    Column("prompt_seconds_total", "REAL", "counter", "seconds spent on prompts"),
    Column("tokens_predicted_total", "REAL", "counter", "tokens generated"),
    Column("tokens_predicted_seconds_total", "REAL", "counter", "seconds spent on generating"),
    Column("n_decode_total", "REAL", "counter", "calls of llama_decode(); moves while a request runs"),
    Column("n_tokens_max", "REAL", "maximum", "longest sequence so far, tokens"),
    Column("n_past_max", "REAL", "maximum", "what older builds call n_tokens_max"),
    Column("spec_decode_num_draft_tokens_total", "REAL", "counter", "tokens drafted in speculation"),
    Column("spec_decode_num_accepted_tokens_total", "REAL", "counter", "drafted tokens that were accepted"),
    Column("spec_decode_num_drafts_total", "REAL", "counter", "drafts verified"),
)
_GAUGES = (
    Column(
        "prompt_tokens_seconds",
        "REAL",
        "gauge",
        "the server's own prompt speed, tokens/s: every reader resets it",
    ),
    Column(
        "predicted_tokens_seconds",
        "REAL",
        "gauge",
        "the server's own speed, tokens/s: every reader resets it",
    ),
    Column("requests_processing", "REAL", "gauge", "requests in work"),
    Column("requests_deferred", "REAL", "gauge", "requests that wait"),
    Column("n_busy_slots_per_decode", "REAL", "gauge", "slots in use, mean over the calls of llama_decode()"),
    Column("kv_cache_usage_ratio", "REAL", "gauge", "KV cache in use, 0-1 (until May 2025)"),
    Column("kv_cache_tokens", "REAL", "gauge", "tokens in the KV cache (until May 2025)"),
)
FINISHED_REQUESTS = "predicted_tokens_per_second IS NOT NULL OR prompt_tokens_per_second IS NOT NULL"
"""Which rows tell of a finished request: few, so that an index of them costs little."""

LLAMA_METRICS = Table(
    "llama_metrics",
    "One row a sample and loaded model. Counters start at 0 with every load; NULL = not told by this build.",
    (
        Column("id", AUTOMATIC_ID, "key", "ascending"),
        Column("timestamp", "INTEGER NOT NULL", "time", "Unix seconds of the sample"),
        Column(
            "model", "TEXT NOT NULL", "label", "the server's name for it: the alias, else the file's name"
        ),
        Column("model_id", "TEXT", "key", "models.id; NULL = no row there yet"),
        *_COUNTERS,
        *_GAUGES,
        Column(
            "prompt_tokens_per_second",
            "REAL",
            "gauge",
            "of requests finished since the last such row; else NULL",
        ),
        Column(
            "predicted_tokens_per_second",
            "REAL",
            "gauge",
            "of requests finished since the last such row; else NULL",
        ),
        Column("cpu_usage", "REAL", "gauge", "its process, percent of all cores (0-100)"),
        Column("memory_used_mb", "REAL", "gauge", "resident memory of its process, MB of 1,048,576 bytes"),
        Column("gpu_memory_used_mb", "REAL", "gauge", "GPU memory of its process, MB; NULL = not told"),
        Column("uptime_seconds", "REAL", "gauge", "since the start of its process"),
        Column("extra", "TEXT", "text", "JSON object of all other llamacpp: values; NULL = none"),
    ),
    (
        Index("idx_llama_metrics_timestamp", "timestamp DESC"),
        Index("idx_llama_metrics_model", "model, timestamp DESC"),
        Index("idx_llama_metrics_finished", "model_id, timestamp DESC", FINISHED_REQUESTS),
    ),
)
_KNOWN = frozenset(column.name for column in (*_COUNTERS, *_GAUGES))


Identity = tuple[int, float]
"""Process id and start of a process: together they never come again."""

NOT_STARTED: Identity = (0, 0.0)


RUN_HEADER = "process-start-time-unix"
"""A number that each run of a server draws anew; not Unix time."""


class ModelMetrics:
    """What is remembered of one model's counters between two readings.

    Args:
        identity: NOT_STARTED where it is known that no process served the model so far; None where nothing is
            known.
    """

    def __init__(self, identity: Identity | None = None) -> None:
        self._identity = identity
        self._run: str | None = None
        self._prompt_speed = TokenSpeed()
        self._predicted_speed = TokenSpeed()

    def was_down(self) -> None:
        """Nothing serves the model: if nothing is known of it yet, its counters will start at 0."""
        self._identity = self._identity or NOT_STARTED

    @property
    def is_new(self) -> bool:
        """Whether no process has been seen yet to serve the model, and it is known that none did before."""
        return self._identity == NOT_STARTED

    def is_another_run(self, answer: Answer) -> bool:
        """Whether an answer of /metrics comes from another run of the server than the last one."""
        return self._run is not None and answer.headers.get(RUN_HEADER) != self._run

    def row(
        self,
        tick: Tick,
        model: ServedModel,
        answer: Answer,
        process: LlamaProcess | None,
        neighbours: Neighbours,
    ) -> Row:
        """The row of `llama_metrics` that an answer of /metrics gives.

        Raises:
            ParseError: the answer is none.
        """
        samples = parse_exposition(answer.text)
        self._notice_restart(answer.headers.get(RUN_HEADER), process)
        known = {name: value for name, value in samples.items() if name in _KNOWN}
        extra = {name: value for name, value in samples.items() if name not in _KNOWN}
        predicted = samples.get("tokens_predicted_total"), samples.get("tokens_predicted_seconds_total")
        prompt = samples.get("prompt_tokens_total"), samples.get("prompt_seconds_total")
        values: dict[str, SqlValue] = {
            **known,
            "timestamp": tick.timestamp,
            "model": model.name,
            "model_id": neighbours.id_of(model),
            "prompt_tokens_per_second": self._prompt_speed.update(*prompt),
            "predicted_tokens_per_second": self._predicted_speed.update(*predicted),
            "extra": json.dumps(extra) if extra else None,
        }
        if process:
            values |= _process_values(tick, process, neighbours)
        return LLAMA_METRICS.row(values)

    def _notice_restart(self, run: str | None, process: LlamaProcess | None) -> None:
        """A new run of the server has new counters.

        Only another process than at the last contact is certain to have started its counters at 0 since
        then. Without a process (the server is elsewhere), the header tells of another run.
        """
        identity = process.identity if process else None
        if identity and self._identity and identity != self._identity:
            self._prompt_speed.restart()
            self._predicted_speed.restart()
        elif run != self._run:
            self._prompt_speed.doubt()
            self._predicted_speed.doubt()
        self._run, self._identity = run, identity or self._identity


def _process_values(tick: Tick, process: LlamaProcess, neighbours: Neighbours) -> dict[str, SqlValue]:
    return {
        "cpu_usage": process.cpu_usage,
        "memory_used_mb": process.resident_bytes / BYTES_PER_MB,
        "gpu_memory_used_mb": neighbours.gpu_memory_of(tick).get(process.pid),
        "uptime_seconds": process.uptime_seconds,
    }
