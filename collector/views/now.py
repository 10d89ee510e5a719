"""The current state in one row."""

from collector.schema import View, ViewColumn
from collector.views.periods import time_columns
from collector.views.requests import GENERATION_SPEED


def _gpus(expression: str) -> str:
    """Return SQL for an aggregate over the GPUs of the newest sample."""
    return f"(SELECT {expression} FROM gpu_metrics WHERE gpu_metrics.timestamp = sample.timestamp)"


def _models(expression: str) -> str:
    """Return SQL for an aggregate over the models of the newest sample."""
    return f"(SELECT {expression} FROM llama_metrics WHERE llama_metrics.timestamp = sample.timestamp)"


_LOADED = """(
    SELECT coalesce(group_concat(name, ', '), '') FROM (
      SELECT name FROM models WHERE status = 'loaded' ORDER BY name))"""
_SPEED_SECONDS = 3600
"""The counters show a finished request in the next sample, so that its row is little older than that one."""


def _last_speeds(expression: str) -> str:
    """Return SQL of an aggregate over the loaded models, with `name`, `speed` and `source` of each.

    The speed is that of the last finished request, or of the sample before which requests finished last.
    """
    return f"""(
    SELECT {expression} FROM (
      SELECT name, coalesce(request_speed, counted_speed) AS speed,
        CASE WHEN request_speed IS NULL THEN 'counters' ELSE 'requests' END AS source
      FROM (
        SELECT *, (
          SELECT round({GENERATION_SPEED}, 1) FROM requests
          WHERE requests.timestamp > coalesce(counted_at, sample.timestamp) - {_SPEED_SECONDS}
            AND +requests.model IS counted.name AND +requests.outcome = 'finished'
            AND +generated_tokens > 1 AND generation_ms > 0
          ORDER BY requests.timestamp DESC, requests.id DESC LIMIT 1) AS request_speed
        FROM (
          SELECT models.name, llama_metrics.timestamp AS counted_at,
            round(llama_metrics.predicted_tokens_per_second, 1) AS counted_speed
          FROM models LEFT JOIN llama_metrics ON llama_metrics.id = (
            SELECT id FROM llama_metrics AS one
            WHERE one.model_id = models.id AND one.predicted_tokens_per_second IS NOT NULL
            ORDER BY one.timestamp DESC LIMIT 1)
          WHERE models.status = 'loaded') AS counted)
      WHERE speed IS NOT NULL ORDER BY name))"""


_TOKENS_LAST_HOUR = """(
    SELECT sum(generated_tokens) FROM token_steps WHERE token_steps.timestamp > sample.timestamp - 3600)"""
_ERRORS_LAST_HOUR = """(
    SELECT count(1) FROM logs
    WHERE logs.timestamp > sample.timestamp - 3600 AND +level IN ('error', 'critical'))"""

_AGE = """
    CASE WHEN strftime('%s', 'now') + 0 >= sample.timestamp
    THEN strftime('%s', 'now') - sample.timestamp END"""

NOW = View(
    "now",
    "What is the current state? One row: the newest sample, and how old it is.",
    (
        *time_columns("sample.timestamp", "of the newest sample"),
        ViewColumn(
            "age_seconds", _AGE, "age of that sample; NULL = its time is in the future: check the clock"
        ),
        ViewColumn(
            "server",
            "(SELECT state FROM collector_health WHERE name = 'llama_server')",
            "state of llama-server: up, down, loading, busy, …; NULL = none is configured",
        ),
        ViewColumn(
            "server_uptime_seconds", "sample.uptime", "since the start of llama-server; 0 = not running"
        ),
        ViewColumn("loaded_models", _LOADED, "names of the loaded models; empty = none"),
        ViewColumn(
            "last_tokens_per_second",
            _last_speeds("group_concat(name || ' ' || speed, ', ')"),
            "last measured generation speed of each loaded model",
        ),
        ViewColumn(
            "requests_processing", _models("sum(requests_processing)"), "requests that are being processed"
        ),
        ViewColumn("requests_deferred", _models("sum(requests_deferred)"), "requests that wait for a slot"),
        ViewColumn(
            "generated_tokens_last_hour", _TOKENS_LAST_HOUR, "by all models, in the hour before the sample"
        ),
        ViewColumn("cpu_usage", "host.cpu_usage", "the whole machine, percent of all cores (0-100)"),
        ViewColumn("memory_usage", "host.memory_usage", "RAM that is not available, percent (0-100)"),
        ViewColumn("swap_usage", "host.swap_usage", "percent (0-100); 0 without swap"),
        ViewColumn("disk_free_mb", "host.disk_free_mb", "on the models' partition, MB of 1,048,576 bytes"),
        ViewColumn("gpu_usage", _gpus("avg(gpu_usage)"), "mean over the GPUs, percent (0-100)"),
        ViewColumn("gpu_memory_used_mb", _gpus("sum(memory_used_mb)"), "sum over the GPUs, MB"),
        ViewColumn("gpu_memory_total_mb", _gpus("sum(memory_total_mb)"), "sum over the GPUs, MB"),
        ViewColumn("gpu_power_watts", _gpus("sum(power_watts)"), "sum over the GPUs, watts"),
        ViewColumn("gpu_temperature_celsius", _gpus("max(temperature_celsius)"), "of the hottest GPU"),
        ViewColumn(
            "errors_last_hour",
            _ERRORS_LAST_HOUR,
            "log records of level error or critical, in the hour before the sample",
        ),
        ViewColumn(
            "speed_source",
            _last_speeds("group_concat(DISTINCT source)"),
            "where these speeds come from: requests (the log is read) or counters of the server",
        ),
    ),
    """
    FROM metrics AS sample
    LEFT JOIN host_metrics AS host ON host.id = (
      SELECT max(id) FROM host_metrics WHERE host_metrics.timestamp = sample.timestamp)
    WHERE sample.id = (SELECT max(id) FROM metrics WHERE timestamp = (SELECT max(timestamp) FROM metrics))""",
)
