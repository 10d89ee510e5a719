"""llama-server: its state, and what /metrics says of its model.

It is only ever asked what loads, wakes and evicts nothing.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit

from collector.config import API_KEY_VARIABLE
from collector.errors import ParseError
from collector.health import State
from collector.parsers.exposition import parse_exposition
from collector.sources.base import Reading, Source, Tick
from collector.sources.disk import BYTES_PER_MB
from collector.sources.llama_http import Answer, AnswerRefused, LlamaHttp, ServerBusy, ServerDown
from collector.sources.llama_process import LlamaProcess, LlamaProcessSource
from collector.sources.token_speed import TokenSpeed
from collector.table import AUTOMATIC_ID, Column, Index, Row, SqlValue, Table

_COUNTERS = (
    Column("prompt_tokens_total", "REAL", "prompt tokens processed, without the cached ones"),
    Column("prompt_tokens_cached_total", "REAL", "prompt tokens taken from the cache (from b10441)"),
    Column("prompt_seconds_total", "REAL", "seconds spent on prompts"),
    Column("tokens_predicted_total", "REAL", "tokens generated"),
    Column("tokens_predicted_seconds_total", "REAL", "seconds spent on generating"),
    Column("n_decode_total", "REAL", "calls of llama_decode(); moves while a request runs"),
    Column("n_tokens_max", "REAL", "longest sequence so far, tokens"),
    Column("n_past_max", "REAL", "what older builds call n_tokens_max"),
    Column("spec_decode_num_draft_tokens_total", "REAL", "tokens drafted in speculation"),
    Column("spec_decode_num_accepted_tokens_total", "REAL", "drafted tokens that were accepted"),
    Column("spec_decode_num_drafts_total", "REAL", "drafts verified"),
)
_GAUGES = (
    Column(
        "prompt_tokens_seconds", "REAL", "the server's own prompt speed, tokens/s: every reader resets it"
    ),
    Column("predicted_tokens_seconds", "REAL", "the server's own speed, tokens/s: every reader resets it"),
    Column("requests_processing", "REAL", "requests in work"),
    Column("requests_deferred", "REAL", "requests that wait"),
    Column("n_busy_slots_per_decode", "REAL", "slots in use, mean over the calls of llama_decode()"),
    Column("kv_cache_usage_ratio", "REAL", "KV cache in use, 0-1 (until May 2025)"),
    Column("kv_cache_tokens", "REAL", "tokens in the KV cache (until May 2025)"),
)
LLAMA_METRICS = Table(
    "llama_metrics",
    "One row a sample and loaded model. Counters start at 0 with every load; NULL = not told by this build.",
    (
        Column("id", AUTOMATIC_ID, "ascending"),
        Column("timestamp", "INTEGER NOT NULL", "Unix seconds of the sample"),
        Column("model", "TEXT NOT NULL", "the server's name for it: the alias, else the file's name"),
        Column("model_id", "TEXT", "models.id; NULL = no row there yet"),
        *_COUNTERS,
        *_GAUGES,
        Column("prompt_tokens_per_second", "REAL", "of requests finished since the last such row; else NULL"),
        Column(
            "predicted_tokens_per_second", "REAL", "of requests finished since the last such row; else NULL"
        ),
        Column("cpu_usage", "REAL", "its process, percent of all cores (0-100)"),
        Column("memory_used_mb", "REAL", "resident memory of its process, MB of 1,048,576 bytes"),
        Column("gpu_memory_used_mb", "REAL", "GPU memory of its process, MB; NULL = not told"),
        Column("uptime_seconds", "REAL", "since the start of its process"),
        Column("extra", "TEXT", "JSON object of all other llamacpp: values; NULL = none"),
    ),
    (
        Index("idx_llama_metrics_timestamp", "timestamp DESC"),
        Index("idx_llama_metrics_model", "model, timestamp DESC"),
    ),
)
_KNOWN = frozenset(column.name for column in (*_COUNTERS, *_GAUGES))

MAX_NAME_CHARACTERS = 500
"""Longer names of models are cut: they come from outside."""

FindModelId = Callable[[str, str | None], str | None]
"""Gives `models.id` for a model's name and path."""


_Identity = tuple[int, float]
"""Process id and start of a process: together they never come again."""

_NOT_STARTED: _Identity = (0, 0.0)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What /props says of a single-mode server."""

    name: str
    path: str | None


class LlamaServerSource:
    """One llama-server in single mode.

    Args:
        http: the way to it.
        url: where it is, for messages and to tell its process from others.
        processes: the llama-server processes of this machine.
        gpu: gives GPU memory in MB by process id; None where GPUs are not read.
        find_model_id: looks a model up in the `models` table.
    """

    name = "llama_server"
    tables = (LLAMA_METRICS,)
    unknown: Mapping[str, SqlValue] = {"active_models": None}

    def __init__(
        self,
        http: LlamaHttp,
        url: str,
        processes: LlamaProcessSource,
        gpu: Source[Mapping[int, float]] | None,
        find_model_id: FindModelId,
    ) -> None:
        self._http = http
        self._url = url
        self._processes = processes
        self._gpu = gpu
        self._find_model_id = find_model_id
        self._model: ServedModel | None = None
        self._run: str | None = None
        self._identity: _Identity | None = None
        self._prompt_speed = TokenSpeed()
        self._predicted_speed = TokenSpeed()

    def read(self, tick: Tick) -> Reading[None]:
        """Ask once; a server that is away, loading or busy is a state, not an error."""
        try:
            return self._ask(tick)
        except ServerDown as error:
            self._identity = self._identity or _NOT_STARTED
            return self._away("down", f"nothing listens at {self._url} ({error}). {_START}", active=0)
        except ServerBusy:
            return _seen(
                "busy", "it takes longer than [llama_server] timeout to answer: no sample", active=None
            )
        except (AnswerRefused, ParseError) as error:
            return self._away("wrong answer", f"{self._url}: {error}. {_IS_IT}", active=None)

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def _ask(self, tick: Tick) -> Reading[None]:
        if self._model is None:
            answer = self._http.get("/props")
            if answer.status != _OK:
                return self._not_ok(answer)
            props = _json_object(answer.text)
            if props.get("role") == "router":
                return _seen("router", "router mode: its models are not followed", active=None)
            self._model = _served_model(props)
        answer = self._http.get("/metrics")
        if answer.status != _OK:
            return self._not_ok(answer)
        samples = parse_exposition(answer.text)
        process = self._process(tick)
        self._notice_restart(answer.headers.get("Process-Start-Time-Unix"), process)
        row = self._row(tick, self._model, samples, process)
        return Reading(None, ((LLAMA_METRICS, row),), {"active_models": 1}, State("up"))

    def _notice_restart(self, run: str | None, process: LlamaProcess | None) -> None:
        """A new run of the server has new counters, and may serve another model.

        Only another process than at the last contact is certain to have started its counters at 0 since
        then. Without a process (the server is elsewhere), a header tells: a number that each run draws anew.
        """
        identity = (process.pid, process.started_at) if process else None
        if identity and self._identity and identity != self._identity:
            self._restart_speeds(from_zero=True)
        elif run != self._run:
            self._restart_speeds(from_zero=False)
        if self._run not in (None, run):
            self._model = _served_model(_json_object(self._http.get("/props").text))
        self._run, self._identity = run, identity or self._identity

    def _restart_speeds(self, *, from_zero: bool) -> None:
        for speed in (self._prompt_speed, self._predicted_speed):
            if from_zero:
                speed.restart()
            else:
                speed.doubt()

    def _process(self, tick: Tick) -> LlamaProcess | None:
        reading = tick.reading_of(self._processes)
        return process_at(self._url, reading.detail) if reading else None

    def _row(
        self, tick: Tick, model: ServedModel, samples: dict[str, float | None], process: LlamaProcess | None
    ) -> Row:
        known = {name: value for name, value in samples.items() if name in _KNOWN}
        extra = {name: value for name, value in samples.items() if name not in _KNOWN}
        predicted = samples.get("tokens_predicted_total"), samples.get("tokens_predicted_seconds_total")
        prompt = samples.get("prompt_tokens_total"), samples.get("prompt_seconds_total")
        values: dict[str, SqlValue] = {
            **known,
            "timestamp": tick.timestamp,
            "model": model.name,
            "model_id": self._find_model_id(model.name, model.path),
            "prompt_tokens_per_second": self._prompt_speed.update(*prompt),
            "predicted_tokens_per_second": self._predicted_speed.update(*predicted),
            "extra": json.dumps(extra) if extra else None,
        }
        if process:
            values |= self._process_values(tick, process)
        return LLAMA_METRICS.row(values)

    def _process_values(self, tick: Tick, process: LlamaProcess) -> dict[str, SqlValue]:
        gpu = tick.reading_of(self._gpu) if self._gpu else None
        return {
            "cpu_usage": process.cpu_usage,
            "memory_used_mb": process.resident_bytes / BYTES_PER_MB,
            "gpu_memory_used_mb": gpu.detail.get(process.pid) if gpu else None,
            "uptime_seconds": max(0.0, tick.timestamp - process.started_at),
        }

    def _not_ok(self, answer: Answer) -> Reading[None]:
        off = answer.status == _NO_SUCH_PATH and self._model  # /props was there: a build of early 2024
        state = _STATES_BY_STATUS.get(_METRICS_OFF if off else answer.status)
        if state is None:
            return self._away("wrong answer", f"{self._url} answers {answer.status}. {_IS_IT}", active=None)
        name, message, active = state
        return self._away(name, message, active)

    def _away(self, name: str, message: str, active: int | None) -> Reading[None]:
        """Nothing can be read; whatever comes next may serve another model."""
        self._model = None
        return _seen(name, message, active)


def process_at(url: str, processes: tuple[LlamaProcess, ...]) -> LlamaProcess | None:
    """The process that serves a URL: the one told to listen there, else the only one there is."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        listening = [p for p in processes if p.argument("--host") == parts.path]
    else:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        listening = [p for p in processes if p.port == port]
    candidates = listening or processes
    return candidates[0] if len(candidates) == 1 else None


_OK, _NO_SUCH_PATH, _METRICS_OFF = 200, 404, 501
_START = "Start llama-server there, or change [llama_server] url"
_IS_IT = (
    "Is it a llama-server? Check [llama_server] url, and its prefix if llama-server runs with --api-prefix"
)
_STATES_BY_STATUS: dict[int, tuple[str, str, int | None]] = {
    503: ("loading", "it loads its model", 0),
    401: (
        "needs key",
        (
            "it wants its API key: put it into a file and name that in [llama_server] api_key_file, "
            f"or set {API_KEY_VARIABLE}"
        ),
        None,
    ),
    403: ("needs key", "it refuses the API key of [llama_server] api_key_file", None),
    _METRICS_OFF: ("metrics off", "start llama-server with --metrics", 1),
    _NO_SUCH_PATH: (
        "not found",
        f"it has no such path: is llama-server's --api-prefix at the end of [llama_server] url? {_START}",
        None,
    ),
}


def _seen(name: str, message: str, active: int | None) -> Reading[None]:
    return Reading(None, snapshot={"active_models": active}, state=_state(name, message))


def _state(name: str, message: str) -> State:
    harmless = name in ("loading", "busy")
    return State(name, message, level="info" if harmless else "warning", success=harmless)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ParseError(f"/props is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ParseError("/props is no JSON object")
    return value


def _served_model(props: dict[str, Any]) -> ServedModel:
    """Without an alias, builds give the path or the file's name in its place."""
    path = props.get("model_path")
    path = path if isinstance(path, str) and path else None
    file = PurePath(path or "unknown")
    alias = props.get("model_alias")
    named = isinstance(alias, str) and alias not in ("", path, file.name)
    return ServedModel(str(alias if named else file.stem)[:MAX_NAME_CHARACTERS], path)
