"""Tokens and speeds of the models, and how busy they were."""

from collector.schema import View, ViewColumn
from collector.views.periods import days_of, hours_of, time_columns
from collector.views.requests import request_speed


def _step(name: str, counter: str, meaning: str) -> ViewColumn:
    """Return the column with the increase of a counter since the previous row of the same run.

    The first row of a run has no previous row. Its counters count in full if the run began while samples were
    recorded; that was decided when the row was written (`counted_from_zero`). Example: the collector runs, a
    model is loaded, and its first row shows 80 tokens: they were all generated since the load. But if the
    first row in the database shows 7,000 tokens, they may be weeks old, and its increase is NULL.
    """
    increase = f"later.{counter} - earlier.{counter}"
    return ViewColumn(
        name, f"CASE later.counted_from_zero WHEN 1 THEN later.{counter} ELSE {increase} END", meaning
    )


TOKEN_STEPS = View(
    "token_steps",
    "By how much did each counter grow between two samples? One row per row of `llama_metrics`: the increase "
    "since the previous row of the same run. llama-server counts a request when it finishes. NULL = not "
    "known: the first row of a run that began before the first sample, or a counter that this build lacks.",
    (
        *time_columns("later.timestamp", "of the sample"),
        ViewColumn("model", "later.model", "name of the model on its server"),
        ViewColumn("model_id", "later.model_id", "models.id"),
        ViewColumn(
            "seconds_since_last",
            "later.timestamp - earlier.timestamp",
            "between this row and the previous one",
        ),
        _step("generated_tokens", "tokens_predicted_total", "tokens generated"),
        _step("generation_seconds", "tokens_predicted_seconds_total", "seconds spent on generation"),
        _step("prompt_tokens", "prompt_tokens_total", "prompt tokens processed, without cached ones"),
        _step("prompt_seconds", "prompt_seconds_total", "seconds spent on processing prompts"),
        _step("cached_tokens", "prompt_tokens_cached_total", "prompt tokens taken from the cache"),
        _step(
            "drafted_tokens", "spec_decode_num_draft_tokens_total", "tokens drafted by speculative decoding"
        ),
        _step("accepted_tokens", "spec_decode_num_accepted_tokens_total", "drafted tokens accepted"),
        ViewColumn("server", "later.server", "server that serves the model: its listening address"),
        ViewColumn("run_id", "later.run_id", "server_runs.id"),
    ),
    """
    FROM llama_metrics AS later
    LEFT JOIN llama_metrics AS earlier ON earlier.id = (
      SELECT id FROM llama_metrics AS one
      WHERE one.run_id = later.run_id AND one.id < later.id AND one.tokens_predicted_total NOT NULL
      ORDER BY one.id DESC LIMIT 1)""",
)


_TOTALS = (
    "generated_tokens",
    "generation_seconds",
    "prompt_tokens",
    "prompt_seconds",
    "cached_tokens",
    "drafted_tokens",
    "accepted_tokens",
)
# The sums have a subquery of their own: SQLite would compute a sum again for each expression that contains
# it.
_MODEL_PERIOD = f""", model_sums AS (
      SELECT began, ended, model, {", ".join(f"sum({total}) AS {total}" for total in _TOTALS)}
      FROM period CROSS JOIN token_steps
      WHERE token_steps.timestamp >= began AND token_steps.timestamp < ended
      GROUP BY began, ended, model
    ), model_period AS (
      SELECT *, {request_speed("generation", "began", "ended", "model_sums.model")} AS request_speed,
        {request_speed("prompt", "began", "ended", "model_sums.model")} AS request_prompt_speed
      FROM model_sums
    )"""
_PERIOD_COLUMNS = (
    ViewColumn("model", "model", "name of the model on its server"),
    ViewColumn("generated_tokens", "generated_tokens", "tokens generated"),
    ViewColumn("prompt_tokens", "prompt_tokens", "prompt tokens processed, without cached ones"),
    ViewColumn("cached_tokens", "cached_tokens", "prompt tokens taken from the cache"),
    ViewColumn(
        "cache_hit_share",
        "cached_tokens / nullif(cached_tokens + prompt_tokens, 0)",
        "cached tokens as a share of all prompt tokens, 0-1",
    ),
    ViewColumn(
        "generated_tokens_per_second",
        "coalesce(request_speed, generated_tokens / nullif(generation_seconds, 0))",
        "all generated tokens by all seconds of generation: long requests count most, and a request that "
        "waits beside others' prompts looks slow",
    ),
    ViewColumn(
        "prompt_tokens_per_second",
        "coalesce(request_prompt_speed, prompt_tokens / nullif(prompt_seconds, 0))",
        "mean speed of prompt processing",
    ),
    ViewColumn(
        "work_seconds",
        "generation_seconds",
        "as generation_seconds",
    ),
    ViewColumn("drafted_tokens", "drafted_tokens", "tokens drafted by speculative decoding"),
    ViewColumn("accepted_tokens", "accepted_tokens", "drafted tokens accepted"),
    ViewColumn(
        "acceptance_share",
        "accepted_tokens / nullif(drafted_tokens, 0)",
        "accepted tokens as a share of the drafted ones, 0-1",
    ),
    ViewColumn("generation_seconds", "generation_seconds", "seconds of generation, summed over the requests"),
    ViewColumn(
        "prompt_seconds",
        "prompt_seconds",
        "seconds of prompt processing: wall time that several requests may share, not to be added to "
        "generation_seconds",
    ),
    ViewColumn(
        "speed_source",
        "CASE WHEN coalesce(request_speed, request_prompt_speed) IS NULL THEN 'counters' ELSE 'requests' END",
        "where both speeds come from: requests (the log is read) or counters of the server",
    ),
)

TOKENS_BY_HOUR = View(
    "tokens_by_hour",
    "How many tokens did each model process and generate per hour? One row per hour and model, also with the "
    "shares of cached and of accepted drafted tokens. A request counts in the hour in which it finishes.",
    (*time_columns("began", "of the start of the hour"), *_PERIOD_COLUMNS),
    "FROM model_period",
    hours_of("llama_metrics") + _MODEL_PERIOD,
)

TOKENS_BY_DAY = View(
    "tokens_by_day",
    "How many tokens did each model process and generate per day? One row per day and model, with the "
    "columns of tokens_by_hour. A day starts at midnight in the time zone of the reader.",
    (*time_columns("began", "of the start of the day"), *_PERIOD_COLUMNS),
    "FROM model_period",
    days_of("llama_metrics") + _MODEL_PERIOD,
)

SPEEDS = View(
    "speeds",
    "How fast was each model, over time and by quantization? One row per sample and model with requests that "
    "finished since the previous one.",
    (
        *time_columns("llama_metrics.timestamp", "of the sample"),
        ViewColumn("model", "llama_metrics.model", "name of the model on its server"),
        ViewColumn("quantization", "models.quantization", "Q4_K_M, Q8_0, F16, …"),
        ViewColumn("file_size_mb", "models.file_size / 1048576.0", "size of its file, MB of 1,048,576 bytes"),
        ViewColumn(
            "generated_tokens_per_second",
            "predicted_tokens_per_second",
            "generation speed of the finished requests",
        ),
        ViewColumn(
            "prompt_tokens_per_second", "prompt_tokens_per_second", "prompt speed of the finished requests"
        ),
    ),
    """
    FROM llama_metrics LEFT JOIN models ON models.id = llama_metrics.model_id
    WHERE predicted_tokens_per_second IS NOT NULL OR prompt_tokens_per_second IS NOT NULL""",
)

BUSY_BY_HOUR = View(
    "busy_by_hour",
    "How busy was each model per hour? One row per hour and model that has samples in it. "
    "Samples in which the server did not answer do not count.",
    (
        *time_columns("began", "of the start of the hour"),
        ViewColumn("model", "model", "name of the model on its server"),
        ViewColumn(
            "busy_share",
            "min(1, 1.0 * busy_samples / nullif(samples, 0))",
            "share of the samples in which it was processing a request, 0-1",
        ),
        ViewColumn(
            "requests_processing",
            "requests / nullif(samples, 0)",
            "requests being processed, mean over the samples",
        ),
        ViewColumn("samples", "samples", "samples in which the server reported its models"),
    ),
    "FROM model_hour",
    f"""{hours_of("llama_metrics")}, model_hour AS (
          SELECT began, model, sum(requests_processing) AS requests,
            count(CASE WHEN requests_processing > 0 THEN 1 END) AS busy_samples,
            (SELECT count(active_models) FROM metrics
             WHERE metrics.timestamp >= began AND metrics.timestamp < ended) AS samples
          FROM period CROSS JOIN llama_metrics AS row WHERE row.timestamp >= began AND row.timestamp < ended
          GROUP BY began, model
        )""",
)
