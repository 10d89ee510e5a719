"""Requests: how long people waited, what was slow or failed, why the cache missed, each model's own speed."""

from collector.schema import View, ViewColumn
from collector.views.periods import days_of, hours_of, time_columns

GENERATION_SPEED = "(generated_tokens - 1) * 1000.0 / nullif(generation_ms, 0)"
"""Tokens per second as llama.cpp divides: the time leaves out the first token. NULL below two tokens."""

_SPEED = f"CASE WHEN generated_tokens > 1 THEN {GENERATION_SPEED} END"
_PROMPT_SPEED = "processed_tokens * 1000.0 / nullif(prompt_ms, 0)"
_OUTCOMES = ("finished", "cancelled", "error", "no_generation", "server_ended", "lost", "incomplete")


def request_speed(of: str, since: str, until: str, model: str) -> str:
    """Return SQL of the speed of a model over its finished requests of a time, tokens per second.

    NULL where there are none: the log is not read, or was not.

    Args:
        of: `generation` or `prompt`.
        since: SQL of the Unix seconds of the earliest end.
        until: SQL of the Unix seconds before which they ended.
        model: SQL of its name.
    """
    tokens, condition = {
        "generation": ("generated_tokens - 1", "generated_tokens > 1"),
        "prompt": ("processed_tokens", "processed_tokens > 0"),
    }[of]
    return f"""(
        SELECT 1000.0 * sum({tokens}) / nullif(sum({of}_ms), 0) FROM requests
        WHERE requests.timestamp >= {since} AND requests.timestamp < {until} AND +requests.model IS {model}
          AND +requests.outcome = 'finished' AND +{condition} AND +requests.time_source <> 'unknown')"""


_DURATIONS = {
    "first_token": ("prompt_ms", "time to the first token, without queueing"),
    "total": ("total_ms", "whole duration in the slot"),
    "queue": ("queue_ms", "wait for a slot, in router mode"),
}
_PERCENTS = (50, 95, 99)
_TOKENS = {
    "generated_tokens": "tokens generated",
    "processed_tokens": "prompt tokens computed",
    "cached_tokens": "prompt tokens taken from the cache",
}


def _at_rank(value: str, source: str, percent: int) -> str:
    """Return SQL of a percentile, by the nearest rank, of a value over some rows.

    Args:
        value: SQL of the value; NULL is left out.
        source: FROM and WHERE of the rows.
        percent: which one.
    """
    ranked = (
        f"SELECT {value} AS value, row_number() OVER (ORDER BY {value}) AS rank, count(*) OVER () AS number"
    )
    return f"""(
      SELECT min(value) FROM ({ranked}
        {source} AND {value} IS NOT NULL) WHERE rank * 100 >= number * {percent})"""


_OF_HOUR = """FROM requests WHERE requests.timestamp >= hour.began AND requests.timestamp < hour.ended
          AND +requests.model IS hour.model AND +requests.outcome = 'finished'
          AND +requests.time_source <> 'unknown'"""


REQUESTS_BY_HOUR = View(
    "requests_by_hour",
    "How many requests did each model answer per hour, how did they end, and how long did people wait? One "
    "row per hour and model. A request counts in the hour in which it ends, if that is known; durations are "
    "of finished ones.",
    (
        *time_columns("hour.began", "of the start of the hour"),
        ViewColumn("model", "hour.model", "name of the model on its server"),
        ViewColumn("requests", "hour.requests", "all of them"),
        *(
            ViewColumn(outcome, f"hour.{outcome}", f"requests with the outcome {outcome}")
            for outcome in _OUTCOMES
        ),
        *(ViewColumn(name, f"hour.{name}", meaning) for name, meaning in _TOKENS.items()),
        *(
            ViewColumn(
                f"{name}_p{percent}_ms",
                _at_rank(column, _OF_HOUR, percent),
                f"{what}: {percent} % took at most this, milliseconds",
            )
            for name, (column, what) in _DURATIONS.items()
            for percent in _PERCENTS
        ),
    ),
    "FROM model_hour AS hour",
    f"""{hours_of("requests")}, model_hour AS (
          SELECT began, ended, model, count(*) AS requests,
            {", ".join(f"sum(outcome = '{outcome}') AS {outcome}" for outcome in _OUTCOMES)},
            {", ".join(f"sum({name}) AS {name}" for name in _TOKENS)}
          FROM period CROSS JOIN requests WHERE requests.timestamp >= began AND requests.timestamp < ended
            AND +requests.time_source <> 'unknown'
          GROUP BY began, ended, model
        )""",
)

_REQUEST_COLUMNS = (
    *time_columns("requests.timestamp", "of its end"),
    ViewColumn("id", "requests.id", "requests.id"),
    ViewColumn("model", "requests.model", "name of the model on its server"),
    ViewColumn("outcome", "requests.outcome", "how it ended"),
    ViewColumn("queue_ms", "queue_ms", "wait for a slot, in router mode"),
    ViewColumn("first_token_ms", "prompt_ms", "time to the first token, without queueing"),
    ViewColumn("total_ms", "total_ms", "whole duration in its slot"),
    ViewColumn("prompt_tokens", "prompt_tokens", "tokens of its prompt"),
    ViewColumn("cached_tokens", "cached_tokens", "of these, tokens taken from the cache"),
    ViewColumn("generated_tokens", "generated_tokens", "tokens generated"),
    ViewColumn("tokens_per_second", _SPEED, "speed of generation; NULL below two tokens"),
    ViewColumn("other_requests", "other_requests", "the most that ran beside it"),
)

SLOW_REQUESTS = View(
    "slow_requests",
    "Which requests were slow, and why? One row per request that took more than 10 s; order it by total_ms.",
    (
        *_REQUEST_COLUMNS,
        ViewColumn(
            "reason",
            """CASE
    WHEN queue_ms > total_ms THEN 'it waited for a slot'
    WHEN prompt_ms > generation_ms AND cached_tokens * 2 < prompt_tokens THEN 'a long prompt, not cached'
    WHEN prompt_ms > generation_ms THEN 'a long prompt'
    WHEN other_requests > 0 THEN 'it ran beside others'
    ELSE 'a long answer' END""",
            "what took most of the time",
        ),
    ),
    "FROM requests WHERE total_ms > 10000",
)

FAILED_REQUESTS = View(
    "failed_requests",
    "Which requests failed, and why? One row per request with an error, or whose server ended first.",
    (
        *_REQUEST_COLUMNS,
        ViewColumn("error", "requests.error", "text of the error; NULL where the server ended"),
        ViewColumn("run_outcome", "server_runs.outcome", "how the process ended that should have answered"),
    ),
    """
    FROM requests LEFT JOIN server_runs ON server_runs.id = requests.run_id
    WHERE requests.outcome IN ('error', 'server_ended')""",
)

CACHE_MISSES = View(
    "cache_misses",
    "For which long prompts did the cache help little, and why? One row per finished request that computed "
    "more than 1,000 tokens, more than half of its prompt.",
    (
        *_REQUEST_COLUMNS,
        ViewColumn("processed_tokens", "processed_tokens", "prompt tokens computed"),
        ViewColumn(
            "slot_similarity", "slot_similarity", "share of the prompt that the slot held already, 0-1"
        ),
        ViewColumn("slot_kept_share", "slot_kept_share", "share of what the slot held that was kept, 0-1"),
        ViewColumn(
            "reason",
            """CASE WHEN slot_similarity IS NULL THEN 'no slot held anything similar'
    WHEN slot_similarity > 0.5 THEN 'the slot held it and could not use it (sliding window, recurrent)'
    ELSE 'no slot held more of it' END""",
            "why so much was computed",
        ),
    ),
    """
    FROM requests WHERE outcome = 'finished' AND processed_tokens > 1000
      AND processed_tokens * 2 > prompt_tokens""",
)


def _context_range(context_tokens: str) -> str:
    """Return SQL of the upper end of the range that a number of tokens is in."""
    limits = (1024, 4096, 16_384, 65_536, 262_144)
    return "CASE " + " ".join(f"WHEN {context_tokens} <= {limit} THEN {limit}" for limit in limits) + " END"


# The plus signs keep SQLite from building an index of the whole table for the condition.
_ALONE = (
    "+requests.outcome = 'finished' AND +other_requests = 0 AND +generated_tokens > 1 "
    "AND +requests.time_source <> 'unknown'"
)
_OF_COMBINATION = f"""FROM requests LEFT JOIN server_runs ON server_runs.id = requests.run_id
        WHERE requests.timestamp >= began AND requests.timestamp < combination.ended
          AND +requests.model IS combination.model AND +requests.model_id IS combination.model_id
          AND +server_runs.build IS combination.build
          AND {_context_range("requests.context_tokens")} IS combination.context_up_to AND {_ALONE}"""


MODEL_SPEEDS = View(
    "model_speeds",
    "How fast is each model by itself, and is it slower since an update? One row per day, model, range of "
    "the context and build of llama-server, with medians over the finished requests that ran alone.",
    (
        *time_columns("began", "of the start of the day"),
        ViewColumn("model", "model", "name of the model on its server"),
        ViewColumn(
            "quantization",
            "(SELECT quantization FROM models WHERE models.id = combination.model_id)",
            "Q4_K_M, Q8_0, F16, …",
        ),
        ViewColumn("build", "build", "build number of llama-server; NULL = not known"),
        ViewColumn(
            "context_up_to",
            "context_up_to",
            "upper end of the range of tokens in the slot: 1024, 4096, … 262144",
        ),
        ViewColumn("requests", "requests", "that ran alone and generated at least two tokens"),
        ViewColumn(
            "tokens_per_second",
            _at_rank(GENERATION_SPEED, _OF_COMBINATION, 50),
            "median speed of generation",
        ),
        ViewColumn(
            "prompt_tokens_per_second",
            _at_rank(_PROMPT_SPEED, f"{_OF_COMBINATION} AND processed_tokens > 32", 50),
            "median speed of the prompts of which more than 32 tokens were computed",
        ),
    ),
    "FROM combination",
    f"""{days_of("requests")}, combination AS (
          SELECT began, ended, model, model_id,
            (SELECT build FROM server_runs WHERE server_runs.id = requests.run_id) AS build,
            {_context_range("context_tokens")} AS context_up_to, count(*) AS requests
          FROM period CROSS JOIN requests
          WHERE requests.timestamp >= began AND requests.timestamp < ended AND {_ALONE}
          GROUP BY began, ended, model, model_id, build, context_up_to
        )""",
)


REQUESTS_AND_COUNTERS = View(
    "requests_and_counters",
    "Is the log still understood? One row per hour and model: what the rows of `requests` add up to, beside "
    "what llama-server itself counted. The difference should be what cancelled requests cost.",
    (
        *time_columns("began", "of the start of the hour"),
        ViewColumn("model", "model", "name of the model on its server"),
        ViewColumn("generated_by_requests", "by_requests", "tokens generated, by the rows of requests"),
        ViewColumn("generated_by_counters", "by_counters", "tokens generated, by the counters of its server"),
        ViewColumn("difference", "by_counters - coalesce(by_requests, 0)", "tokens that no row contains"),
        ViewColumn("unknown_requests", "unknown", "requests of the hour whose tokens are not known"),
        ViewColumn(
            "explanation",
            """CASE
    WHEN by_counters IS NULL THEN 'llama-server reports no counters'
    WHEN by_requests IS NULL THEN 'no request is in the log: verbosity, format, or another log'
    WHEN abs(by_counters - by_requests) <= 0.001 * by_counters THEN 'they agree'
    WHEN by_counters > by_requests AND unknown > 0 THEN 'cancelled requests'
    ELSE 'samples and requests at the edges of the hour' END""",
            "what the difference is, as far as the rows tell",
        ),
    ),
    "FROM model_hour",
    f"""{hours_of("llama_metrics")}, model_hour AS (
          SELECT began, model, sum(generated_tokens) AS by_counters,
            (SELECT sum(generated_tokens) FROM requests WHERE requests.timestamp >= began
             AND requests.timestamp < ended AND +requests.model IS token_steps.model) AS by_requests,
            (SELECT count(*) FROM requests WHERE requests.timestamp >= began AND requests.timestamp < ended
             AND +requests.model IS token_steps.model AND generated_tokens IS NULL) AS unknown
          FROM period CROSS JOIN token_steps
          WHERE token_steps.timestamp >= began AND token_steps.timestamp < ended
          GROUP BY began, ended, model
        )""",
)
