"""Loads, time in memory, and disuse of models."""

from collector.schema import View, ViewColumn
from collector.views.periods import local_time, time_columns

MODEL_LOADS = View(
    "model_loads",
    "When was each model in memory, and how long did loading take? One row from each load, or waking, "
    "to the following sleep or end.",
    (
        *time_columns("came.timestamp", "of the sample that first saw it there"),
        ViewColumn("model", "came.model", "the server's name for it"),
        ViewColumn("model_id", "came.model_id", "models.id"),
        ViewColumn("came_by", "came.event", "loaded or woke"),
        ViewColumn(
            "load_seconds",
            "CASE came.previous_state WHEN 'loading' THEN came.seconds_since_last END",
            "how long loading took; NULL = it was not seen, or the model woke",
        ),
        ViewColumn("left_at", "went.timestamp", "Unix seconds of its end; NULL = it is still there"),
        ViewColumn("left_by", "went.event", "sleeping, unloaded, evicted, crashed, …"),
        ViewColumn(
            "resident_seconds",
            "coalesce(went.seconds_since_last, "
            "coalesce(went.timestamp, (SELECT max(timestamp) FROM metrics)) - came.timestamp)",
            "how long it was there; of one that is still there, up to the newest sample",
        ),
        ViewColumn("context_size", "came.context_size", "tokens"),
        ViewColumn("build", "came.build", "llama-server's build number"),
        ViewColumn("server", "came.server", "the server that it belongs to"),
        ViewColumn("run_id", "came.run_id", "server_runs.id of the process"),
    ),
    """
    FROM model_events AS came
    LEFT JOIN model_events AS went ON went.id = (
      SELECT id FROM model_events AS one
      WHERE one.server IS came.server AND one.model = came.model AND one.id > came.id
      ORDER BY one.id LIMIT 1)
    WHERE came.event IN ('loaded', 'woke')""",
)

MODEL_RESIDENCY = View(
    "model_residency",
    "How often was each model loaded, how long did that take, how long did it stay? One row a model, "
    "over all that is kept; `timestamp` is its last load.",
    (
        *time_columns("max(timestamp)", "of its last load or waking"),
        ViewColumn("model", "model", "the server's name for it"),
        ViewColumn("loads", "sum(came_by = 'loaded')", "how often it was loaded"),
        ViewColumn("mean_load_seconds", "avg(load_seconds)", "of the loads that were seen"),
        ViewColumn("longest_load_seconds", "max(load_seconds)", "of the loads that were seen"),
        ViewColumn("resident_seconds", "sum(resident_seconds)", "in memory, in total"),
        ViewColumn("sleeps", "sum(coalesce(left_by, '') = 'sleeping')", "how often it fell asleep"),
        ViewColumn("evictions", "sum(coalesce(left_by, '') = 'evicted')", "how often it made room"),
        ViewColumn("crashes", "sum(coalesce(left_by, '') = 'crashed')", "how often its process died"),
    ),
    "FROM model_loads GROUP BY model",
)

UNUSED_MODELS = View(
    "unused_models",
    "Which models on the disk are unused, and for how long? One row a model; ask for `unused_days > 30`.",
    (
        ViewColumn("model_id", "id", "models.id"),
        ViewColumn("name", "name", "its name in `models`"),
        ViewColumn("quantization", "quantization", "Q4_K_M, Q8_0, F16, …"),
        ViewColumn("status", "status", "idle, loaded, loading, error, unloaded"),
        ViewColumn("file_size_mb", "file_size / 1048576.0", "of its file, MB of 1,048,576 bytes"),
        ViewColumn("model_path", "model_path", "path of the file"),
        ViewColumn(
            "last_used", "last_used", "Unix seconds of its last finished request or load; NULL = none is kept"
        ),
        ViewColumn(
            "last_used_local_time", local_time("last_used"), "the same, in the time zone of the reader"
        ),
        ViewColumn(
            "unused_days",
            "(strftime('%s', 'now') - coalesce(last_used, watched_since)) / 86400.0",
            "days since then; where no use is kept, at least so many: since it is known and samples are kept",
        ),
    ),
    "FROM model_use",
    """
    WITH last_load AS (
      SELECT model_id, max(timestamp) AS loaded_at FROM model_events WHERE event = 'loaded' GROUP BY model_id
    ), last_request AS (
      SELECT models.id AS model_id, (
        SELECT max(timestamp) FROM llama_metrics WHERE model_id = models.id
        AND (predicted_tokens_per_second IS NOT NULL OR prompt_tokens_per_second IS NOT NULL)
      ) AS finished_at FROM models
    ), oldest AS (
      SELECT min(timestamp) AS sample FROM metrics
    ), model_use AS (
      SELECT models.*,
        max(coalesce(loaded_at, finished_at), coalesce(finished_at, loaded_at)) AS last_used,
        max(coalesce(created_at, sample), coalesce(sample, created_at)) AS watched_since
      FROM models CROSS JOIN oldest
      JOIN last_request ON last_request.model_id = models.id
      LEFT JOIN last_load ON last_load.model_id = models.id
    )""",
)
