"""Tokens and speeds of the models, and how busy they were."""

from collector.schema import View, ViewColumn
from collector.views.periods import days_of, hours_of, time_columns


def _step(name: str, counter: str, meaning: str) -> ViewColumn:
    """Return the column of a counter's increase since the row before of the same run.

    The first row of a run counts in full where the run began within the recorded time. That was decided when
    the row was written (`counted_from_zero`). Else it is not known what was done since the last sample.
    """
    increase = f"later.{counter} - earlier.{counter}"
    return ViewColumn(
        name, f"CASE later.counted_from_zero WHEN 1 THEN later.{counter} ELSE {increase} END", meaning
    )


TOKEN_STEPS = View(
    "token_steps",
    "What did each sample add? One row a row of `llama_metrics`: what was counted since the model's row "
    "before in the same run. Counts of a request come when it is finished. NULL = not known: the first row "
    "of a run that began before the recorded time, or a counter that this build does not have.",
    (
        *time_columns("later.timestamp", "of the sample"),
        ViewColumn("model", "later.model", "the server's name for it"),
        ViewColumn("model_id", "later.model_id", "models.id"),
        ViewColumn(
            "seconds_since_last", "later.timestamp - earlier.timestamp", "between this row and the one before"
        ),
        _step("generated_tokens", "tokens_predicted_total", "tokens generated"),
        _step("generation_seconds", "tokens_predicted_seconds_total", "seconds spent on them"),
        _step("prompt_tokens", "prompt_tokens_total", "prompt tokens processed, without the cached ones"),
        _step("prompt_seconds", "prompt_seconds_total", "seconds spent on them"),
        _step("cached_tokens", "prompt_tokens_cached_total", "prompt tokens taken from the cache"),
        _step("drafted_tokens", "spec_decode_num_draft_tokens_total", "tokens drafted in speculation"),
        _step("accepted_tokens", "spec_decode_num_accepted_tokens_total", "drafted tokens accepted"),
        ViewColumn("server", "later.server", "the server that it belongs to"),
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
# Summed up first: in an expression over several sums SQLite would compute each of them again.
_MODEL_PERIOD = f""", model_period AS (
      SELECT began, model, {", ".join(f"sum({total}) AS {total}" for total in _TOTALS)}
      FROM period CROSS JOIN token_steps
      WHERE token_steps.timestamp >= began AND token_steps.timestamp < ended
      GROUP BY began, model
    )"""
_PERIOD_COLUMNS = (
    ViewColumn("model", "model", "the server's name for it"),
    ViewColumn("generated_tokens", "generated_tokens", "tokens generated"),
    ViewColumn("prompt_tokens", "prompt_tokens", "prompt tokens processed, without the cached ones"),
    ViewColumn("cached_tokens", "cached_tokens", "prompt tokens taken from the cache"),
    ViewColumn(
        "cache_hit_share",
        "cached_tokens / nullif(cached_tokens + prompt_tokens, 0)",
        "of all prompt tokens, 0-1",
    ),
    ViewColumn(
        "generated_tokens_per_second",
        "generated_tokens / nullif(generation_seconds, 0)",
        "mean speed of one request",
    ),
    ViewColumn(
        "prompt_tokens_per_second",
        "prompt_tokens / nullif(prompt_seconds, 0)",
        "mean speed of reading a prompt",
    ),
    ViewColumn(
        "work_seconds", "generation_seconds + prompt_seconds", "spent on finished requests, all added up"
    ),
    ViewColumn("drafted_tokens", "drafted_tokens", "tokens drafted in speculation"),
    ViewColumn("accepted_tokens", "accepted_tokens", "drafted tokens accepted"),
    ViewColumn("acceptance_share", "accepted_tokens / nullif(drafted_tokens, 0)", "of drafted tokens, 0-1"),
)

TOKENS_BY_HOUR = View(
    "tokens_by_hour",
    "How much did each model do in an hour? One row an hour and model. A request counts in the hour in which "
    "it was seen finished. Here also: the share of cached prompt tokens, and of accepted drafts.",
    (*time_columns("began", "of the hour's beginning"), *_PERIOD_COLUMNS),
    "FROM model_period",
    hours_of("llama_metrics") + _MODEL_PERIOD,
)

TOKENS_BY_DAY = View(
    "tokens_by_day",
    "How much did each model do in a day? As by hour. A day begins at midnight in the reader's time zone.",
    (*time_columns("began", "of the day's beginning"), *_PERIOD_COLUMNS),
    "FROM model_period",
    days_of("llama_metrics") + _MODEL_PERIOD,
)

SPEEDS = View(
    "speeds",
    "How fast was each model, over time and by quantization? One row a sample that saw requests finished.",
    (
        *time_columns("llama_metrics.timestamp", "of the sample"),
        ViewColumn("model", "llama_metrics.model", "the server's name for it"),
        ViewColumn("quantization", "models.quantization", "Q4_K_M, Q8_0, F16, …"),
        ViewColumn("file_size_mb", "models.file_size / 1048576.0", "of its file, MB of 1,048,576 bytes"),
        ViewColumn("generated_tokens_per_second", "predicted_tokens_per_second", "of the finished requests"),
        ViewColumn("prompt_tokens_per_second", "prompt_tokens_per_second", "of the finished requests"),
    ),
    """
    FROM llama_metrics LEFT JOIN models ON models.id = llama_metrics.model_id
    WHERE predicted_tokens_per_second IS NOT NULL OR prompt_tokens_per_second IS NOT NULL""",
)

BUSY_BY_HOUR = View(
    "busy_by_hour",
    "How busy was each model in an hour? One row an hour and model that was read in it. "
    "Samples in which the server did not answer are left out.",
    (
        *time_columns("began", "of the hour's beginning"),
        ViewColumn("model", "model", "the server's name for it"),
        ViewColumn(
            "busy_share",
            "min(1, 1.0 * busy_samples / nullif(samples, 0))",
            "of the samples that saw it with requests in work, 0-1",
        ),
        ViewColumn(
            "requests_processing", "requests / nullif(samples, 0)", "requests in work, mean over the samples"
        ),
        ViewColumn("samples", "samples", "in which the server reported its models"),
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
