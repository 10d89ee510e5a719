"""The table `llama_metrics`: the values of /metrics per model and sample, and speeds computed from them."""

import json
from collections.abc import Mapping
from math import isfinite

from collector.parsers.exposition import resolution
from collector.schema import AUTOMATIC_ID, BYTES_PER_MB, Column, Index, Row, SqlValue, Table
from collector.sources.llama.runs import ObservedProcess, RunAssignment

_COUNTERS = (
    Column("prompt_tokens_total", "REAL", "counter", "prompt tokens processed, without cached ones"),
    Column(
        "prompt_tokens_cached_total", "REAL", "counter", "prompt tokens taken from the cache (from b10441)"
    ),
    Column("prompt_seconds_total", "REAL", "counter", "seconds spent on processing prompts"),
    Column("tokens_predicted_total", "REAL", "counter", "tokens generated"),
    Column("tokens_predicted_seconds_total", "REAL", "counter", "seconds spent on generation"),
    Column(
        "n_decode_total",
        "REAL",
        "counter",
        "calls of llama_decode(); also grows while a request is processed",
    ),
    Column("n_tokens_max", "REAL", "maximum", "longest sequence so far, tokens"),
    Column("n_past_max", "REAL", "maximum", "name of n_tokens_max in older builds"),
    Column("spec_decode_num_draft_tokens_total", "REAL", "counter", "tokens drafted by speculative decoding"),
    Column("spec_decode_num_accepted_tokens_total", "REAL", "counter", "drafted tokens that were accepted"),
    Column("spec_decode_num_drafts_total", "REAL", "counter", "drafts that were verified"),
)
_GAUGES = (
    Column(
        "prompt_tokens_seconds",
        "REAL",
        "gauge",
        "prompt speed as reported by the server, tokens/s; each request of /metrics resets it",
    ),
    Column(
        "predicted_tokens_seconds",
        "REAL",
        "gauge",
        "generation speed as reported by the server, tokens/s; each request of /metrics resets it",
    ),
    Column("requests_processing", "REAL", "gauge", "requests that are being processed"),
    Column("requests_deferred", "REAL", "gauge", "requests that wait for a slot"),
    Column("n_busy_slots_per_decode", "REAL", "gauge", "slots in use, mean over all calls of llama_decode()"),
    Column("kv_cache_usage_ratio", "REAL", "gauge", "KV cache in use, 0-1 (until May 2025)"),
    Column("kv_cache_tokens", "REAL", "gauge", "tokens in the KV cache (until May 2025)"),
)
FINISHED_REQUESTS = "predicted_tokens_per_second IS NOT NULL OR prompt_tokens_per_second IS NOT NULL"
"""Condition of rows with requests that finished. They are few, so that an index of them is small."""

LLAMA_METRICS = Table(
    "llama_metrics",
    "One row per sample and loaded model. Counters start at 0 in each run. NULL = not reported by the build.",
    (
        Column("id", AUTOMATIC_ID, "key", "ascending"),
        Column("timestamp", "INTEGER NOT NULL", "time", "Unix seconds of the sample"),
        Column(
            "model",
            "TEXT NOT NULL",
            "label",
            "name of the model on its server: the alias, else the name of the file",
        ),
        Column("model_id", "TEXT", "key", "models.id; NULL = the model has no row there yet"),
        *_COUNTERS,
        *_GAUGES,
        Column(
            "prompt_tokens_per_second",
            "REAL",
            "gauge",
            "prompt speed of the requests that finished since the previous row with a speed; NULL = none did",
        ),
        Column(
            "predicted_tokens_per_second",
            "REAL",
            "gauge",
            "generation speed of the requests that finished since the previous row with a speed; "
            "NULL = none did",
        ),
        Column("cpu_usage", "REAL", "gauge", "processor usage of its process, percent of all cores (0-100)"),
        Column("memory_used_mb", "REAL", "gauge", "resident memory of its process, MB of 1,048,576 bytes"),
        Column(
            "gpu_memory_used_mb",
            "REAL",
            "gauge",
            "GPU memory of its process, MB; NULL = the driver does not report it",
        ),
        Column("uptime_seconds", "REAL", "gauge", "seconds since the start of its process"),
        Column("extra", "TEXT", "text", "JSON object of all llamacpp: values without a column; NULL = none"),
        Column("server", "TEXT", "label", "server of the model: its listening address"),
        Column("run_id", "INTEGER", "key", "server_runs.id; only counters of the same run can be compared"),
        Column(
            "counted_from_zero",
            "INTEGER",
            "state",
            "1 = first row of a run that began after the first sample: its counters count in full; "
            "0 = any other row",
        ),
    ),
    (
        Index("idx_llama_metrics_timestamp", "timestamp DESC"),
        Index("idx_llama_metrics_run", "run_id"),
        Index("idx_llama_metrics_finished", "model_id, timestamp DESC", FINISHED_REQUESTS),
    ),
    retired_indexes=("idx_llama_metrics_model",),  # of version 0.1.0: 17 % of the file, and no view uses it
)
_KNOWN = frozenset(column.name for column in (*_COUNTERS, *_GAUGES))


MEANINGFUL_STEPS = 20
"""How many times the printed resolution a difference must have to be used: then it is wrong by 5 % at most.

Example: from 1,000,000 tokens on, the resolution is 10 tokens, and a speed is computed from 200 tokens on.
"""


class TokenSpeed:
    """The speed of one run, between two samples in which its counters of tokens and of seconds grew.

    llama-server's seconds of generation leave out the first token of each request, its tokens do not. How
    many requests finished between two samples is not known, so one is assumed: for a single request the speed
    is exact, for several it is somewhat too high.

    Args:
        untimed_tokens: tokens of each request that the seconds leave out: 1 for generation.
        from_zero: whether both counters started at 0 after the previous sample. Then the first update already
            returns a speed.
    """

    def __init__(self, *, untimed_tokens: int = 0, from_zero: bool = False) -> None:
        self._untimed_tokens = untimed_tokens
        self._last: tuple[float, float] | None = (0.0, 0.0) if from_zero else None

    def update(self, tokens: float | None, seconds: float | None) -> float | None:
        """Return the speed since the last update that returned one.

        Args:
            tokens: tokens processed so far; None if the server does not report it.
            seconds: processing time of these tokens so far.

        Returns:
            tokens per second; None if no request finished, if the requests had so few tokens that they have
            no speed, or if the counters grew by too little to compute one from values of 6 digits: then the
            next update includes this growth.
        """
        if tokens is None or seconds is None:
            return None
        if self._last is None or tokens < self._last[0] or seconds < self._last[1]:
            self._last = (tokens, seconds)
        more_tokens, more_seconds = tokens - self._last[0], seconds - self._last[1]
        if not (
            _is_meaningful(more_tokens, tokens, whole=True)
            and _is_meaningful(more_seconds, seconds, whole=False)
        ):
            return None
        self._last = (tokens, seconds)
        timed_tokens = more_tokens - self._untimed_tokens
        speed = timed_tokens / more_seconds
        return speed if timed_tokens > 0 and isfinite(speed) and speed < _MAX_SPEED else None


_MAX_SPEED = 1e5
"""Tokens per second that no model reaches: requests of one token each, whose seconds are nearly 0."""


def _is_meaningful(difference: float, counter: float, *, whole: bool) -> bool:
    return difference > 0 and difference >= MEANINGFUL_STEPS * resolution(counter, whole=whole)


class RunSpeeds:
    """The speeds of the finished requests of one run.

    Args:
        from_zero: see `TokenSpeed`.
    """

    def __init__(self, *, from_zero: bool) -> None:
        self._prompt = TokenSpeed(from_zero=from_zero)
        self._predicted = TokenSpeed(untimed_tokens=1, from_zero=from_zero)

    def update(self, samples: Mapping[str, float | None]) -> dict[str, SqlValue]:
        """Return both columns of speeds, computed from the counters of one sample."""
        return {
            "prompt_tokens_per_second": self._prompt.update(
                samples.get("prompt_tokens_total"), samples.get("prompt_seconds_total")
            ),
            "predicted_tokens_per_second": self._predicted.update(
                samples.get("tokens_predicted_total"), samples.get("tokens_predicted_seconds_total")
            ),
        }


def metrics_row(
    observed: ObservedProcess,
    samples: Mapping[str, float | None],
    speeds: Mapping[str, SqlValue],
    assignment: RunAssignment | None,
) -> Row:
    """Return the row of `llama_metrics` of one model in one sample.

    Args:
        observed: the process whose /metrics was read.
        samples: the values of /metrics by name.
        speeds: the columns that `RunSpeeds.update` returned.
        assignment: the run of the row; None while the database is locked before the first sample.
    """
    extra = {name: value for name, value in samples.items() if name not in _KNOWN}
    values: dict[str, SqlValue] = {
        **{name: value for name, value in samples.items() if name in _KNOWN},
        **speeds,
        "timestamp": observed.timestamp,
        "model": observed.model.name,
        "model_id": observed.model_id,
        "extra": json.dumps(extra) if extra else None,
        "server": observed.server,
        "run_id": assignment.run_id if assignment else None,
        "counted_from_zero": int(assignment.counted_from_zero) if assignment else None,
    }
    if process := observed.process:
        gpus = observed.gpus
        values |= {
            "cpu_usage": process.cpu_usage,
            "memory_used_mb": process.resident_bytes / BYTES_PER_MB,
            "gpu_memory_used_mb": gpus.process_memory_mb.get(process.pid) if gpus else None,
            "uptime_seconds": process.uptime_seconds,
        }
    return LLAMA_METRICS.row(values)
