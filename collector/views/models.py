"""When each model was loaded, how long it stayed in memory, and since when it is unused."""

from collector.schema import View, ViewColumn
from collector.views.periods import local_time, time_columns

MODEL_LOADS = View(
    "model_loads",
    "When was each model in memory, and how long did loading take? One row per stay in memory: from a load "
    "or a wake-up until the model sleeps or is unloaded.",
    (
        *time_columns(
            "came.timestamp", "at which it was in memory: as the router's log says, or of the first sample"
        ),
        ViewColumn("model", "came.model", "name of the model on its server"),
        ViewColumn("model_id", "came.model_id", "models.id"),
        ViewColumn("came_by", "came.event", "event that started the stay: loaded or woke"),
        ViewColumn(
            "load_seconds",
            "CASE came.previous_state WHEN 'loading' THEN came.seconds_since_last END",
            "how long loading took; NULL = no sample saw it loading, or it woke up",
        ),
        ViewColumn(
            "left_at", "went.timestamp", "Unix seconds of the end of the stay; NULL = it is still in memory"
        ),
        ViewColumn(
            "left_by", "went.event", "event that ended the stay: sleeping, unloaded, evicted, crashed, …"
        ),
        ViewColumn(
            "resident_seconds",
            "coalesce(went.seconds_since_last, "
            "coalesce(went.timestamp, (SELECT max(timestamp) FROM metrics)) - came.timestamp)",
            "how long it was in memory; until the newest sample if it still is",
        ),
        ViewColumn("context_size", "came.context_size", "context of one slot, tokens"),
        ViewColumn("build", "came.build", "llama-server's build number"),
        ViewColumn(
            "evidence", "came.evidence", "what its beginning is known from: sampling, log, log and sampling"
        ),
        ViewColumn("server", "came.server", "server that serves it: its listening address"),
        ViewColumn("run_id", "came.run_id", "server_runs.id of the process that served it"),
    ),
    """
    FROM model_events AS came
    LEFT JOIN model_events AS went ON went.id = (
      SELECT id FROM model_events AS one
      WHERE one.server IS came.server AND one.model = came.model
      AND coalesce(one.occurred_at, one.timestamp) >= coalesce(came.occurred_at, came.timestamp)
      AND (coalesce(one.occurred_at, one.timestamp) > coalesce(came.occurred_at, came.timestamp)
        OR one.id > came.id)
      ORDER BY coalesce(one.occurred_at, one.timestamp), one.id LIMIT 1)
    WHERE came.event IN ('loaded', 'woke')""",
)

MODEL_RESIDENCY = View(
    "model_residency",
    "How often was each model loaded, how long did loading take, how long did it stay in memory? One row per "
    "model, over all stored events.",
    (
        *time_columns("max(timestamp)", "of its last load or wake-up"),
        ViewColumn("model", "model", "name of the model on its server"),
        ViewColumn("loads", "sum(came_by = 'loaded')", "how often it was loaded"),
        ViewColumn("mean_load_seconds", "avg(load_seconds)", "mean duration of the loads that samples saw"),
        ViewColumn(
            "longest_load_seconds", "max(load_seconds)", "longest duration of the loads that samples saw"
        ),
        ViewColumn("resident_seconds", "sum(resident_seconds)", "total time in memory"),
        ViewColumn("sleeps", "sum(coalesce(left_by, '') = 'sleeping')", "how often it went to sleep"),
        ViewColumn(
            "evictions",
            "sum(coalesce(left_by, '') = 'evicted')",
            "how often it was unloaded to make room for another model",
        ),
        ViewColumn("crashes", "sum(coalesce(left_by, '') = 'crashed')", "how often its process crashed"),
    ),
    "FROM model_loads GROUP BY model",
)

UNUSED_MODELS = View(
    "unused_models",
    "Which models are unused, and for how long? One row per model; filter with `WHERE unused_days > 30`.",
    (
        ViewColumn("model_id", "id", "models.id"),
        ViewColumn("name", "name", "its name in `models`"),
        ViewColumn("quantization", "quantization", "Q4_K_M, Q8_0, F16, …"),
        ViewColumn("status", "status", "idle, loaded, loading, error, unloaded"),
        ViewColumn("file_size_mb", "file_size / 1048576.0", "size of its file, MB of 1,048,576 bytes"),
        ViewColumn("model_path", "model_path", "path of the file"),
        ViewColumn(
            "last_used",
            "last_used",
            "Unix seconds of its last finished request or load; NULL = none is stored",
        ),
        ViewColumn(
            "last_used_local_time", local_time("last_used"), "the same, in the time zone of the reader"
        ),
        ViewColumn(
            "unused_days",
            "(strftime('%s', 'now') - coalesce(last_used, watched_since)) / 86400.0",
            "days since last_used; if that is NULL, days since its row was created or since the oldest "
            "sample, whichever is later",
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
