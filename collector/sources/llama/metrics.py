"""The table `llama_metrics`: /metrics of one model in one sample, and the speeds that follow from it."""

import json
from collections.abc import Mapping
from math import isfinite

from collector.parsers.exposition import resolution
from collector.schema import AUTOMATIC_ID, BYTES_PER_MB, Column, Index, Row, SqlValue, Table
from collector.sources.gpu.source import GpuDetail
from collector.sources.llama.processes import LlamaProcess
from collector.sources.llama.runs import Observation, Sighting

_COUNTERS = (
    Column("prompt_tokens_total", "REAL", "counter", "prompt tokens processed, without the cached ones"),
    Column("prompt_tokens_cached_total", "REAL", "counter", "prompt tokens found in the cache (from b10441)"),
    Column("prompt_seconds_total", "REAL", "counter", "seconds spent on prompts"),
    Column("tokens_predicted_total", "REAL", "counter", "tokens generated"),
    Column("tokens_predicted_seconds_total", "REAL", "counter", "seconds spent on generating"),
    Column("n_decode_total", "REAL", "counter", "calls of llama_decode(); moves while a request runs"),
    Column("n_tokens_max", "REAL", "maximum", "longest sequence so far, tokens"),
    Column("n_past_max", "REAL", "maximum", "older builds' name of n_tokens_max"),
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
"""Which rows show a finished request: few, so that an index of them costs little."""

LLAMA_METRICS = Table(
    "llama_metrics",
    "One row a sample and loaded model. Counters start at 0 in every run; NULL = not reported by this build.",
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
        Column("gpu_memory_used_mb", "REAL", "gauge", "GPU memory of its process, MB; NULL = not reported"),
        Column("uptime_seconds", "REAL", "gauge", "since the start of its process"),
        Column("extra", "TEXT", "text", "JSON object of all other llamacpp: values; NULL = none"),
        Column("server", "TEXT", "label", "the server that it belongs to: its listening address"),
        Column("run_id", "INTEGER", "key", "server_runs.id: rows of one run can be compared"),
        Column(
            "counted_from_zero",
            "INTEGER",
            "state",
            "1 = first row of a run that began within the recorded time: its counters count in full; else 0",
        ),
    ),
    (
        Index("idx_llama_metrics_timestamp", "timestamp DESC"),
        Index("idx_llama_metrics_run", "run_id"),
        Index("idx_llama_metrics_finished", "model_id, timestamp DESC", FINISHED_REQUESTS),
    ),
    retired_indexes=("idx_llama_metrics_model",),  # of version 0.1.0: 17 % of its bytes, and no view uses it
)
_KNOWN = frozenset(column.name for column in (*_COUNTERS, *_GAUGES))


MEANINGFUL_STEPS = 20
"""A difference counts from this many times the printed resolution: an error of 5 % at most each."""


class TokenSpeed:
    """The speed of one run over the interval in which both counters moved.

    Args:
        from_zero: whether the counters began at 0 since the last sample: then the first update has a speed.
    """

    def __init__(self, *, from_zero: bool = False) -> None:
        self._last: tuple[float, float] | None = (0.0, 0.0) if from_zero else None

    def update(self, tokens: float | None, seconds: float | None) -> float | None:
        """Return the speed since the last update in which both counters moved.

        Args:
            tokens: tokens processed so far; None where the server has no such counter.
            seconds: time spent on them so far.

        Returns:
            tokens a second, or None where no request finished, or too little to say.
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
        speed = more_tokens / more_seconds
        return speed if isfinite(speed) else None


def _is_meaningful(difference: float, counter: float, *, whole: bool) -> bool:
    return difference > 0 and difference >= MEANINGFUL_STEPS * resolution(counter, whole=whole)


class RunSpeeds:
    """Speeds of the requests of one run, from the counters of one sample to the next.

    Args:
        from_zero: whether all that the counters show was done since the run was first seen.
    """

    def __init__(self, *, from_zero: bool) -> None:
        self._prompt, self._predicted = TokenSpeed(from_zero=from_zero), TokenSpeed(from_zero=from_zero)

    def update(self, samples: Mapping[str, float | None]) -> dict[str, SqlValue]:
        """Return the speeds of the requests that finished since the last sample; NULL where none did."""
        return {
            "prompt_tokens_per_second": self._prompt.update(
                samples.get("prompt_tokens_total"), samples.get("prompt_seconds_total")
            ),
            "predicted_tokens_per_second": self._predicted.update(
                samples.get("tokens_predicted_total"), samples.get("tokens_predicted_seconds_total")
            ),
        }


def metrics_row(
    sighting: Sighting,
    samples: Mapping[str, float | None],
    speeds: Mapping[str, SqlValue],
    observation: Observation | None,
) -> Row:
    """Return the row of `llama_metrics` of one model in one sample.

    Args:
        sighting: the process that was read.
        samples: what its /metrics says, by name.
        speeds: the columns that `RunSpeeds` gives.
        observation: the run that the row belongs to; None where that cannot be decided just now.
    """
    extra = {name: value for name, value in samples.items() if name not in _KNOWN}
    values: dict[str, SqlValue] = {
        **{name: value for name, value in samples.items() if name in _KNOWN},
        **speeds,
        "timestamp": sighting.timestamp,
        "model": sighting.model.name,
        "model_id": sighting.model_id,
        "extra": json.dumps(extra) if extra else None,
        "server": sighting.server,
        "run_id": observation.run_id if observation else None,
        "counted_from_zero": int(observation.counted_from_zero) if observation else None,
    }
    if sighting.process:
        values |= _process_values(sighting.process, sighting.gpus)
    return LLAMA_METRICS.row(values)


def _process_values(process: LlamaProcess, gpus: GpuDetail | None) -> dict[str, SqlValue]:
    return {
        "cpu_usage": process.cpu_usage,
        "memory_used_mb": process.resident_bytes / BYTES_PER_MB,
        "gpu_memory_used_mb": gpus.process_memory_mb.get(process.pid) if gpus else None,
        "uptime_seconds": process.uptime_seconds,
    }
