-- The schema of version 0.1.0, as it created it.
CREATE TABLE models (
  id TEXT PRIMARY KEY,
  name TEXT NOT NULL,
  type TEXT DEFAULT 'llama',
  status TEXT DEFAULT 'idle',
  parameters TEXT DEFAULT '{}',
  model_path TEXT,
  file_size INTEGER,
  params TEXT,
  quantization TEXT,
  ctx_size INTEGER DEFAULT 4096,
  embedding_size INTEGER DEFAULT 0,
  block_count INTEGER DEFAULT 0,
  head_count INTEGER DEFAULT 0,
  head_count_kv INTEGER DEFAULT 0,
  ffn_dim INTEGER DEFAULT 0,
  file_type INTEGER DEFAULT 0,
  batch_size INTEGER DEFAULT 512,
  threads INTEGER DEFAULT 4,
  favorite INTEGER DEFAULT 0,
  created_at INTEGER,
  updated_at INTEGER
);
CREATE INDEX idx_models_status ON models(status);
CREATE INDEX idx_models_name ON models(name);
CREATE INDEX idx_models_created ON models(created_at DESC);
CREATE TABLE metrics (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  cpu_usage REAL,
  memory_usage REAL,
  disk_usage REAL,
  active_models INTEGER,
  uptime REAL,
  gpu_usage REAL DEFAULT 0,
  gpu_memory_used REAL DEFAULT 0,
  gpu_memory_total REAL DEFAULT 0,
  swap_usage REAL DEFAULT 0,
  timestamp INTEGER DEFAULT (strftime('%s', 'now'))
);
CREATE INDEX idx_metrics_timestamp ON metrics(timestamp DESC);
CREATE TABLE logs (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  level TEXT NOT NULL,
  message TEXT NOT NULL,
  source TEXT,
  timestamp INTEGER DEFAULT (strftime('%s', 'now'))
);
CREATE INDEX idx_logs_timestamp ON logs(timestamp DESC);
CREATE INDEX idx_logs_source ON logs(source);
CREATE INDEX idx_logs_level ON logs(level);
CREATE TABLE server_config (
  key TEXT PRIMARY KEY,
  value TEXT NOT NULL
);
CREATE TABLE metadata (
  key TEXT PRIMARY KEY,
  value TEXT NOT NULL,
  updated_at INTEGER
);
CREATE INDEX idx_metadata_key ON metadata(key);
CREATE TABLE host_metrics (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  timestamp INTEGER NOT NULL,
  cpu_usage REAL,
  load_1m REAL,
  load_5m REAL,
  load_15m REAL,
  memory_total_mb REAL,
  memory_available_mb REAL,
  memory_usage REAL,
  swap_total_mb REAL,
  swap_used_mb REAL,
  swap_usage REAL,
  swap_in_bytes_per_second REAL,
  swap_out_bytes_per_second REAL,
  disk_total_mb REAL,
  disk_used_mb REAL,
  disk_free_mb REAL,
  disk_usage REAL,
  disk_read_bytes_per_second REAL,
  disk_write_bytes_per_second REAL,
  network_received_bytes_per_second REAL,
  network_sent_bytes_per_second REAL,
  cpu_temperature_celsius REAL
);
CREATE INDEX idx_host_metrics_timestamp ON host_metrics(timestamp DESC);
CREATE TABLE gpu_metrics (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  timestamp INTEGER NOT NULL,
  gpu_index INTEGER NOT NULL,
  uuid TEXT,
  name TEXT,
  gpu_usage REAL,
  memory_bandwidth_usage REAL,
  memory_used_mb REAL,
  memory_free_mb REAL,
  memory_total_mb REAL,
  temperature_celsius REAL,
  fan_usage REAL,
  power_watts REAL,
  power_limit_watts REAL,
  graphics_clock_mhz REAL,
  memory_clock_mhz REAL,
  energy_joules REAL,
  performance_state INTEGER,
  throttle_reasons INTEGER
);
CREATE INDEX idx_gpu_metrics_timestamp ON gpu_metrics(timestamp DESC);
CREATE TABLE llama_metrics (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  timestamp INTEGER NOT NULL,
  model TEXT NOT NULL,
  model_id TEXT,
  prompt_tokens_total REAL,
  prompt_tokens_cached_total REAL,
  prompt_seconds_total REAL,
  tokens_predicted_total REAL,
  tokens_predicted_seconds_total REAL,
  n_decode_total REAL,
  n_tokens_max REAL,
  n_past_max REAL,
  spec_decode_num_draft_tokens_total REAL,
  spec_decode_num_accepted_tokens_total REAL,
  spec_decode_num_drafts_total REAL,
  prompt_tokens_seconds REAL,
  predicted_tokens_seconds REAL,
  requests_processing REAL,
  requests_deferred REAL,
  n_busy_slots_per_decode REAL,
  kv_cache_usage_ratio REAL,
  kv_cache_tokens REAL,
  prompt_tokens_per_second REAL,
  predicted_tokens_per_second REAL,
  cpu_usage REAL,
  memory_used_mb REAL,
  gpu_memory_used_mb REAL,
  uptime_seconds REAL,
  extra TEXT
);
CREATE INDEX idx_llama_metrics_timestamp ON llama_metrics(timestamp DESC);
CREATE INDEX idx_llama_metrics_model ON llama_metrics(model, timestamp DESC);
CREATE INDEX idx_llama_metrics_finished ON llama_metrics(model_id, timestamp DESC) WHERE predicted_tokens_per_second IS NOT NULL OR prompt_tokens_per_second IS NOT NULL;
CREATE TABLE model_events (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  timestamp INTEGER NOT NULL,
  model TEXT NOT NULL,
  model_id TEXT,
  event TEXT NOT NULL,
  state TEXT NOT NULL,
  previous_state TEXT,
  seconds_since_last REAL,
  exit_code INTEGER,
  model_path TEXT,
  context_size INTEGER,
  build INTEGER
);
CREATE INDEX idx_model_events_timestamp ON model_events(timestamp DESC);
CREATE INDEX idx_model_events_model ON model_events(model, timestamp DESC);
CREATE TABLE model_files (
  path TEXT PRIMARY KEY,
  found_at TEXT NOT NULL,
  size_bytes INTEGER NOT NULL,
  modified_ns INTEGER NOT NULL,
  inode INTEGER NOT NULL,
  disk TEXT NOT NULL,
  verdict TEXT NOT NULL,
  reason TEXT NOT NULL,
  model_id TEXT
);
CREATE TABLE log_positions (
  name TEXT PRIMARY KEY,
  position TEXT NOT NULL,
  updated_at INTEGER NOT NULL
);
CREATE TABLE collector_health (
  name TEXT PRIMARY KEY,
  state TEXT NOT NULL,
  message TEXT NOT NULL,
  since INTEGER NOT NULL,
  last_success INTEGER,
  last_duration_ms REAL,
  runs INTEGER NOT NULL,
  failures INTEGER NOT NULL
);
CREATE VIEW now AS -- a view of llama-collector: How do things stand? One row for a person: the newest sample, and how old it is.
SELECT
  sample.timestamp AS timestamp,
  datetime(sample.timestamp, 'unixepoch', 'localtime') AS local_time,
  strftime('%s', 'now') - sample.timestamp AS age_seconds,
  (SELECT state FROM collector_health WHERE name = 'llama_server') AS server,
  sample.uptime AS server_uptime_seconds,
  (
    SELECT coalesce(group_concat(name, ', '), '') FROM (
      SELECT name FROM models WHERE status = 'loaded' ORDER BY name)) AS loaded_models,
  (
    SELECT group_concat(name || ' ' || speed, ', ') FROM (
      SELECT name, (
        SELECT round(predicted_tokens_per_second, 1) FROM llama_metrics
        WHERE model_id = models.id AND predicted_tokens_per_second IS NOT NULL
        ORDER BY timestamp DESC LIMIT 1) AS speed
      FROM models WHERE status = 'loaded' ORDER BY name)) AS last_tokens_per_second,
  (SELECT sum(requests_processing) FROM llama_metrics WHERE llama_metrics.timestamp = sample.timestamp) AS requests_processing,
  (SELECT sum(requests_deferred) FROM llama_metrics WHERE llama_metrics.timestamp = sample.timestamp) AS requests_deferred,
  (
    SELECT sum(generated_tokens) FROM token_steps WHERE token_steps.timestamp > sample.timestamp - 3600) AS generated_tokens_last_hour,
  host.cpu_usage AS cpu_usage,
  host.memory_usage AS memory_usage,
  host.swap_usage AS swap_usage,
  host.disk_free_mb AS disk_free_mb,
  (SELECT avg(gpu_usage) FROM gpu_metrics WHERE gpu_metrics.timestamp = sample.timestamp) AS gpu_usage,
  (SELECT sum(memory_used_mb) FROM gpu_metrics WHERE gpu_metrics.timestamp = sample.timestamp) AS gpu_memory_used_mb,
  (SELECT sum(memory_total_mb) FROM gpu_metrics WHERE gpu_metrics.timestamp = sample.timestamp) AS gpu_memory_total_mb,
  (SELECT sum(power_watts) FROM gpu_metrics WHERE gpu_metrics.timestamp = sample.timestamp) AS gpu_power_watts,
  (SELECT max(temperature_celsius) FROM gpu_metrics WHERE gpu_metrics.timestamp = sample.timestamp) AS gpu_temperature_celsius,
  (
    SELECT count(1) FROM logs
    WHERE logs.timestamp > sample.timestamp - 3600 AND +level IN ('error', 'critical')) AS errors_last_hour
FROM metrics AS sample
LEFT JOIN host_metrics AS host ON host.id = (
  SELECT max(id) FROM host_metrics WHERE host_metrics.timestamp = sample.timestamp)
WHERE sample.id = (SELECT max(id) FROM metrics WHERE timestamp = (SELECT max(timestamp) FROM metrics));
CREATE VIEW tokens_by_hour AS -- a view of llama-collector: How much did each model do in an hour? One row an hour and model. A request counts in the hour in which it was seen finished. Here also: the share of cached prompt tokens, and of accepted drafts.
    WITH RECURSIVE beginning(began) AS (
      SELECT min(timestamp) / 864000 * 864000 FROM llama_metrics
      UNION ALL
      SELECT (SELECT min(timestamp) / 864000 * 864000 FROM llama_metrics WHERE timestamp >= began + 864000)
      FROM beginning WHERE began IS NOT NULL
    ), hour(second) AS (
      SELECT 0 UNION ALL SELECT second + 3600 FROM hour WHERE second < 860400
    ), period(began, ended) AS (
      SELECT beginning.began + hour.second, beginning.began + hour.second + 3600 FROM beginning CROSS JOIN hour
      WHERE beginning.began IS NOT NULL AND EXISTS (
        SELECT 1 FROM llama_metrics WHERE timestamp >= beginning.began + hour.second AND timestamp < beginning.began + hour.second + 3600)
    ), model_period AS (
  SELECT began, model, sum(generated_tokens) AS generated_tokens, sum(generation_seconds) AS generation_seconds, sum(prompt_tokens) AS prompt_tokens, sum(prompt_seconds) AS prompt_seconds, sum(cached_tokens) AS cached_tokens, sum(drafted_tokens) AS drafted_tokens, sum(accepted_tokens) AS accepted_tokens
  FROM period CROSS JOIN token_steps
  WHERE token_steps.timestamp >= began AND token_steps.timestamp < ended
  GROUP BY began, model
)
SELECT
  began AS timestamp,
  datetime(began, 'unixepoch', 'localtime') AS local_time,
  model AS model,
  generated_tokens AS generated_tokens,
  prompt_tokens AS prompt_tokens,
  cached_tokens AS cached_tokens,
  cached_tokens / nullif(cached_tokens + prompt_tokens, 0) AS cache_hit_share,
  generated_tokens / nullif(generation_seconds, 0) AS generated_tokens_per_second,
  prompt_tokens / nullif(prompt_seconds, 0) AS prompt_tokens_per_second,
  generation_seconds + prompt_seconds AS work_seconds,
  drafted_tokens AS drafted_tokens,
  accepted_tokens AS accepted_tokens,
  accepted_tokens / nullif(drafted_tokens, 0) AS acceptance_share
FROM model_period;
CREATE VIEW tokens_by_day AS -- a view of llama-collector: How much did each model do in a day? As by hour. A day begins at midnight where the reader is.
    WITH RECURSIVE beginning(began) AS (
      SELECT CAST(strftime('%s', min(timestamp), 'unixepoch', 'localtime', 'start of day', 'utc') AS INTEGER) FROM llama_metrics
      UNION ALL
      SELECT (SELECT CAST(strftime('%s', min(timestamp), 'unixepoch', 'localtime', 'start of day', 'utc') AS INTEGER) FROM llama_metrics WHERE timestamp >= CAST(strftime('%s', began, 'unixepoch', 'localtime', 'start of day', '+1 day', 'utc') AS INTEGER))
      FROM beginning WHERE began IS NOT NULL
    ), period(began, ended) AS (
      SELECT began, CAST(strftime('%s', began, 'unixepoch', 'localtime', 'start of day', '+1 day', 'utc') AS INTEGER) FROM beginning WHERE began IS NOT NULL
    ), model_period AS (
  SELECT began, model, sum(generated_tokens) AS generated_tokens, sum(generation_seconds) AS generation_seconds, sum(prompt_tokens) AS prompt_tokens, sum(prompt_seconds) AS prompt_seconds, sum(cached_tokens) AS cached_tokens, sum(drafted_tokens) AS drafted_tokens, sum(accepted_tokens) AS accepted_tokens
  FROM period CROSS JOIN token_steps
  WHERE token_steps.timestamp >= began AND token_steps.timestamp < ended
  GROUP BY began, model
)
SELECT
  began AS timestamp,
  datetime(began, 'unixepoch', 'localtime') AS local_time,
  model AS model,
  generated_tokens AS generated_tokens,
  prompt_tokens AS prompt_tokens,
  cached_tokens AS cached_tokens,
  cached_tokens / nullif(cached_tokens + prompt_tokens, 0) AS cache_hit_share,
  generated_tokens / nullif(generation_seconds, 0) AS generated_tokens_per_second,
  prompt_tokens / nullif(prompt_seconds, 0) AS prompt_tokens_per_second,
  generation_seconds + prompt_seconds AS work_seconds,
  drafted_tokens AS drafted_tokens,
  accepted_tokens AS accepted_tokens,
  accepted_tokens / nullif(drafted_tokens, 0) AS acceptance_share
FROM model_period;
CREATE VIEW speeds AS -- a view of llama-collector: How fast was each model, over time and by quantization? One row a sample that saw requests finished.
SELECT
  llama_metrics.timestamp AS timestamp,
  datetime(llama_metrics.timestamp, 'unixepoch', 'localtime') AS local_time,
  llama_metrics.model AS model,
  models.quantization AS quantization,
  models.file_size / 1048576.0 AS file_size_mb,
  predicted_tokens_per_second AS generated_tokens_per_second,
  prompt_tokens_per_second AS prompt_tokens_per_second
FROM llama_metrics LEFT JOIN models ON models.id = llama_metrics.model_id
WHERE predicted_tokens_per_second IS NOT NULL OR prompt_tokens_per_second IS NOT NULL;
CREATE VIEW busy_by_hour AS -- a view of llama-collector: How busy was each model in an hour? One row an hour and model that was read in it. Samples in which the server did not answer are left out.
WITH RECURSIVE beginning(began) AS (
  SELECT min(timestamp) / 864000 * 864000 FROM llama_metrics
  UNION ALL
  SELECT (SELECT min(timestamp) / 864000 * 864000 FROM llama_metrics WHERE timestamp >= began + 864000)
  FROM beginning WHERE began IS NOT NULL
), hour(second) AS (
  SELECT 0 UNION ALL SELECT second + 3600 FROM hour WHERE second < 860400
), period(began, ended) AS (
  SELECT beginning.began + hour.second, beginning.began + hour.second + 3600 FROM beginning CROSS JOIN hour
  WHERE beginning.began IS NOT NULL AND EXISTS (
    SELECT 1 FROM llama_metrics WHERE timestamp >= beginning.began + hour.second AND timestamp < beginning.began + hour.second + 3600)
), model_hour AS (
  SELECT began, model, sum(requests_processing) AS requests,
    count(CASE WHEN requests_processing > 0 THEN 1 END) AS busy_samples,
    (SELECT count(active_models) FROM metrics
     WHERE metrics.timestamp >= began AND metrics.timestamp < ended) AS samples
  FROM period CROSS JOIN llama_metrics AS row WHERE row.timestamp >= began AND row.timestamp < ended
  GROUP BY began, model
)
SELECT
  began AS timestamp,
  datetime(began, 'unixepoch', 'localtime') AS local_time,
  model AS model,
  min(1, 1.0 * busy_samples / nullif(samples, 0)) AS busy_share,
  requests / nullif(samples, 0) AS requests_processing,
  samples AS samples
FROM model_hour;
CREATE VIEW gpu_by_hour AS -- a view of llama-collector: What did the GPUs spend on the tokens? One row an hour, all GPUs together. What one of them does not tell is NULL.
    WITH RECURSIVE beginning(began) AS (
      SELECT min(timestamp) / 864000 * 864000 FROM gpu_metrics
      UNION ALL
      SELECT (SELECT min(timestamp) / 864000 * 864000 FROM gpu_metrics WHERE timestamp >= began + 864000)
      FROM beginning WHERE began IS NOT NULL
    ), hour(second) AS (
      SELECT 0 UNION ALL SELECT second + 3600 FROM hour WHERE second < 860400
    ), period(began, ended) AS (
      SELECT beginning.began + hour.second, beginning.began + hour.second + 3600 FROM beginning CROSS JOIN hour
      WHERE beginning.began IS NOT NULL AND EXISTS (
        SELECT 1 FROM gpu_metrics WHERE timestamp >= beginning.began + hour.second AND timestamp < beginning.began + hour.second + 3600)
    ), gpu_step AS (
  SELECT later.*,
    CASE WHEN later.energy_joules < earlier.energy_joules THEN later.energy_joules
         ELSE later.energy_joules - earlier.energy_joules END AS used_joules
  FROM gpu_metrics AS later
  LEFT JOIN gpu_metrics AS earlier ON earlier.id = (
    SELECT id FROM gpu_metrics AS one
    WHERE one.timestamp < later.timestamp AND one.timestamp >= later.timestamp - 3600
      AND one.uuid = later.uuid
    ORDER BY one.timestamp DESC LIMIT 1)
), gpu_hour AS (
  SELECT began,
    count(DISTINCT uuid) AS gpus,
    avg(gpu_usage) AS gpu_usage,
    CASE WHEN count(1) = count(memory_used_mb) THEN
      sum(memory_used_mb) / count(DISTINCT timestamp) END AS memory,
    CASE WHEN count(1) = count(power_watts) THEN
      sum(power_watts) / count(DISTINCT timestamp) END AS power,
    CASE WHEN count(1) = count(energy_joules) THEN sum(used_joules) END AS joules,
    (SELECT sum(generated_tokens) FROM token_steps
     WHERE token_steps.timestamp >= began AND token_steps.timestamp < ended) AS tokens
  FROM period CROSS JOIN gpu_step WHERE gpu_step.timestamp >= began AND gpu_step.timestamp < ended
  GROUP BY began
)
SELECT
  began AS timestamp,
  datetime(began, 'unixepoch', 'localtime') AS local_time,
  gpus AS gpus,
  gpu_usage AS gpu_usage,
  memory AS memory_used_mb,
  power AS power_watts,
  joules AS energy_joules,
  tokens AS generated_tokens,
  joules / 3600 / nullif(tokens, 0) * 1000000 AS watt_hours_per_million_tokens
FROM gpu_hour;
CREATE VIEW model_loads AS -- a view of llama-collector: When was each model in memory, and how long did loading take? One row a stay: from a load, or from its waking, to its sleep or end.
SELECT
  came.timestamp AS timestamp,
  datetime(came.timestamp, 'unixepoch', 'localtime') AS local_time,
  came.model AS model,
  came.model_id AS model_id,
  came.event AS came_by,
  CASE came.previous_state WHEN 'loading' THEN came.seconds_since_last END AS load_seconds,
  went.timestamp AS left_at,
  went.event AS left_by,
  coalesce(went.timestamp, (SELECT max(timestamp) FROM metrics)) - came.timestamp AS resident_seconds,
  came.context_size AS context_size,
  came.build AS build
FROM model_events AS came
LEFT JOIN model_events AS went ON went.id = (
  SELECT id FROM model_events AS one
  WHERE one.model = came.model AND one.timestamp >= came.timestamp
    AND (one.timestamp > came.timestamp OR one.id > came.id)
  ORDER BY one.timestamp, one.id LIMIT 1)
WHERE came.event IN ('loaded', 'woke');
CREATE VIEW model_residency AS -- a view of llama-collector: How often was each model loaded, how long did that take, how long did it stay? One row a model, over all that is kept; `timestamp` is its last load.
SELECT
  max(timestamp) AS timestamp,
  datetime(max(timestamp), 'unixepoch', 'localtime') AS local_time,
  model AS model,
  sum(came_by = 'loaded') AS loads,
  avg(load_seconds) AS mean_load_seconds,
  max(load_seconds) AS longest_load_seconds,
  sum(resident_seconds) AS resident_seconds,
  sum(coalesce(left_by, '') = 'sleeping') AS sleeps,
  sum(coalesce(left_by, '') = 'evicted') AS evictions,
  sum(coalesce(left_by, '') = 'crashed') AS crashes
FROM model_loads GROUP BY model;
CREATE VIEW unused_models AS -- a view of llama-collector: Which models lie on the disk unused, and for how long? One row a model; ask for `unused_days > 30`.
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
)
SELECT
  id AS model_id,
  name AS name,
  quantization AS quantization,
  status AS status,
  file_size / 1048576.0 AS file_size_mb,
  model_path AS model_path,
  last_used AS last_used,
  datetime(last_used, 'unixepoch', 'localtime') AS last_used_local_time,
  (strftime('%s', 'now') - coalesce(last_used, watched_since)) / 86400.0 AS unused_days
FROM model_use;
CREATE VIEW errors_by_hour AS -- a view of llama-collector: What went wrong, when and where? One row an hour and source that logged anything.
WITH RECURSIVE beginning(began) AS (
  SELECT min(timestamp) / 864000 * 864000 FROM logs
  UNION ALL
  SELECT (SELECT min(timestamp) / 864000 * 864000 FROM logs WHERE timestamp >= began + 864000)
  FROM beginning WHERE began IS NOT NULL
), hour(second) AS (
  SELECT 0 UNION ALL SELECT second + 3600 FROM hour WHERE second < 860400
), period(began, ended) AS (
  SELECT beginning.began + hour.second, beginning.began + hour.second + 3600 FROM beginning CROSS JOIN hour
  WHERE beginning.began IS NOT NULL AND EXISTS (
    SELECT 1 FROM logs WHERE timestamp >= beginning.began + hour.second AND timestamp < beginning.began + hour.second + 3600)
)
SELECT
  began AS timestamp,
  datetime(began, 'unixepoch', 'localtime') AS local_time,
  source AS source,
  sum(level IN ('error', 'critical')) AS errors,
  sum(level = 'warn') AS warnings,
  count(1) AS records
FROM period CROSS JOIN logs WHERE logs.timestamp >= began AND logs.timestamp < ended
GROUP BY began, source;
CREATE VIEW gaps AS -- a view of llama-collector: When was nothing sampled? One row a pause over three times as long as the shorter of those beside it.
SELECT
  first.timestamp AS timestamp,
  datetime(first.timestamp, 'unixepoch', 'localtime') AS local_time,
  last.timestamp AS began,
  datetime(last.timestamp, 'unixepoch', 'localtime') AS began_local_time,
  first.timestamp - last.timestamp AS seconds,
  (first.timestamp - last.timestamp) / max(1, min(coalesce(last.timestamp - earlier.timestamp, later.timestamp - first.timestamp), coalesce(later.timestamp - first.timestamp, last.timestamp - earlier.timestamp))) - 1 AS missing_samples
FROM metrics AS first
JOIN metrics AS last ON last.id = (
  SELECT id FROM metrics AS one WHERE one.timestamp < first.timestamp
  ORDER BY one.timestamp DESC LIMIT 1)
LEFT JOIN metrics AS earlier ON earlier.id = (
  SELECT id FROM metrics AS one WHERE one.timestamp < last.timestamp
  ORDER BY one.timestamp DESC LIMIT 1)
LEFT JOIN metrics AS later ON later.id = (
  SELECT id FROM metrics AS one WHERE one.timestamp > first.timestamp
  ORDER BY one.timestamp ASC LIMIT 1)
WHERE first.timestamp - last.timestamp > 3 * max(1, min(coalesce(last.timestamp - earlier.timestamp, later.timestamp - first.timestamp), coalesce(later.timestamp - first.timestamp, last.timestamp - earlier.timestamp)))
  AND first.id = (SELECT min(id) FROM metrics AS one WHERE one.timestamp = first.timestamp);
CREATE VIEW token_steps AS -- a view of llama-collector: What did each sample add? One row a row of `llama_metrics`: what was counted since the model's row before, right across restarts and unloads. Counts of a request come when it is finished. NULL = not known: the model's first row, or a counter that this build does not have.
SELECT
  later.timestamp AS timestamp,
  datetime(later.timestamp, 'unixepoch', 'localtime') AS local_time,
  later.model AS model,
  later.model_id AS model_id,
  later.timestamp - earlier.timestamp AS seconds_since_last,
  CASE WHEN CASE WHEN earlier.id IS NULL THEN later.timestamp - later.uptime_seconds >= (SELECT min(timestamp) - 1 FROM metrics) WHEN later.timestamp - later.uptime_seconds - (earlier.timestamp - earlier.uptime_seconds) IS NULL THEN later.tokens_predicted_total < earlier.tokens_predicted_total OR later.prompt_tokens_total < earlier.prompt_tokens_total OR later.n_decode_total < earlier.n_decode_total ELSE later.timestamp - later.uptime_seconds - (earlier.timestamp - earlier.uptime_seconds) > CASE WHEN later.tokens_predicted_total < earlier.tokens_predicted_total OR later.prompt_tokens_total < earlier.prompt_tokens_total OR later.n_decode_total < earlier.n_decode_total THEN 0.1 ELSE 2 END END THEN later.tokens_predicted_total ELSE CASE WHEN later.tokens_predicted_total - earlier.tokens_predicted_total < 0 THEN 0 ELSE later.tokens_predicted_total - earlier.tokens_predicted_total END END AS generated_tokens,
  CASE WHEN CASE WHEN earlier.id IS NULL THEN later.timestamp - later.uptime_seconds >= (SELECT min(timestamp) - 1 FROM metrics) WHEN later.timestamp - later.uptime_seconds - (earlier.timestamp - earlier.uptime_seconds) IS NULL THEN later.tokens_predicted_total < earlier.tokens_predicted_total OR later.prompt_tokens_total < earlier.prompt_tokens_total OR later.n_decode_total < earlier.n_decode_total ELSE later.timestamp - later.uptime_seconds - (earlier.timestamp - earlier.uptime_seconds) > CASE WHEN later.tokens_predicted_total < earlier.tokens_predicted_total OR later.prompt_tokens_total < earlier.prompt_tokens_total OR later.n_decode_total < earlier.n_decode_total THEN 0.1 ELSE 2 END END THEN later.tokens_predicted_seconds_total ELSE CASE WHEN later.tokens_predicted_seconds_total - earlier.tokens_predicted_seconds_total < 0 THEN 0 ELSE later.tokens_predicted_seconds_total - earlier.tokens_predicted_seconds_total END END AS generation_seconds,
  CASE WHEN CASE WHEN earlier.id IS NULL THEN later.timestamp - later.uptime_seconds >= (SELECT min(timestamp) - 1 FROM metrics) WHEN later.timestamp - later.uptime_seconds - (earlier.timestamp - earlier.uptime_seconds) IS NULL THEN later.tokens_predicted_total < earlier.tokens_predicted_total OR later.prompt_tokens_total < earlier.prompt_tokens_total OR later.n_decode_total < earlier.n_decode_total ELSE later.timestamp - later.uptime_seconds - (earlier.timestamp - earlier.uptime_seconds) > CASE WHEN later.tokens_predicted_total < earlier.tokens_predicted_total OR later.prompt_tokens_total < earlier.prompt_tokens_total OR later.n_decode_total < earlier.n_decode_total THEN 0.1 ELSE 2 END END THEN later.prompt_tokens_total ELSE CASE WHEN later.prompt_tokens_total - earlier.prompt_tokens_total < 0 THEN 0 ELSE later.prompt_tokens_total - earlier.prompt_tokens_total END END AS prompt_tokens,
  CASE WHEN CASE WHEN earlier.id IS NULL THEN later.timestamp - later.uptime_seconds >= (SELECT min(timestamp) - 1 FROM metrics) WHEN later.timestamp - later.uptime_seconds - (earlier.timestamp - earlier.uptime_seconds) IS NULL THEN later.tokens_predicted_total < earlier.tokens_predicted_total OR later.prompt_tokens_total < earlier.prompt_tokens_total OR later.n_decode_total < earlier.n_decode_total ELSE later.timestamp - later.uptime_seconds - (earlier.timestamp - earlier.uptime_seconds) > CASE WHEN later.tokens_predicted_total < earlier.tokens_predicted_total OR later.prompt_tokens_total < earlier.prompt_tokens_total OR later.n_decode_total < earlier.n_decode_total THEN 0.1 ELSE 2 END END THEN later.prompt_seconds_total ELSE CASE WHEN later.prompt_seconds_total - earlier.prompt_seconds_total < 0 THEN 0 ELSE later.prompt_seconds_total - earlier.prompt_seconds_total END END AS prompt_seconds,
  CASE WHEN CASE WHEN earlier.id IS NULL THEN later.timestamp - later.uptime_seconds >= (SELECT min(timestamp) - 1 FROM metrics) WHEN later.timestamp - later.uptime_seconds - (earlier.timestamp - earlier.uptime_seconds) IS NULL THEN later.tokens_predicted_total < earlier.tokens_predicted_total OR later.prompt_tokens_total < earlier.prompt_tokens_total OR later.n_decode_total < earlier.n_decode_total ELSE later.timestamp - later.uptime_seconds - (earlier.timestamp - earlier.uptime_seconds) > CASE WHEN later.tokens_predicted_total < earlier.tokens_predicted_total OR later.prompt_tokens_total < earlier.prompt_tokens_total OR later.n_decode_total < earlier.n_decode_total THEN 0.1 ELSE 2 END END THEN later.prompt_tokens_cached_total ELSE CASE WHEN later.prompt_tokens_cached_total - earlier.prompt_tokens_cached_total < 0 THEN 0 ELSE later.prompt_tokens_cached_total - earlier.prompt_tokens_cached_total END END AS cached_tokens,
  CASE WHEN CASE WHEN earlier.id IS NULL THEN later.timestamp - later.uptime_seconds >= (SELECT min(timestamp) - 1 FROM metrics) WHEN later.timestamp - later.uptime_seconds - (earlier.timestamp - earlier.uptime_seconds) IS NULL THEN later.tokens_predicted_total < earlier.tokens_predicted_total OR later.prompt_tokens_total < earlier.prompt_tokens_total OR later.n_decode_total < earlier.n_decode_total ELSE later.timestamp - later.uptime_seconds - (earlier.timestamp - earlier.uptime_seconds) > CASE WHEN later.tokens_predicted_total < earlier.tokens_predicted_total OR later.prompt_tokens_total < earlier.prompt_tokens_total OR later.n_decode_total < earlier.n_decode_total THEN 0.1 ELSE 2 END END THEN later.spec_decode_num_draft_tokens_total ELSE CASE WHEN later.spec_decode_num_draft_tokens_total - earlier.spec_decode_num_draft_tokens_total < 0 THEN 0 ELSE later.spec_decode_num_draft_tokens_total - earlier.spec_decode_num_draft_tokens_total END END AS drafted_tokens,
  CASE WHEN CASE WHEN earlier.id IS NULL THEN later.timestamp - later.uptime_seconds >= (SELECT min(timestamp) - 1 FROM metrics) WHEN later.timestamp - later.uptime_seconds - (earlier.timestamp - earlier.uptime_seconds) IS NULL THEN later.tokens_predicted_total < earlier.tokens_predicted_total OR later.prompt_tokens_total < earlier.prompt_tokens_total OR later.n_decode_total < earlier.n_decode_total ELSE later.timestamp - later.uptime_seconds - (earlier.timestamp - earlier.uptime_seconds) > CASE WHEN later.tokens_predicted_total < earlier.tokens_predicted_total OR later.prompt_tokens_total < earlier.prompt_tokens_total OR later.n_decode_total < earlier.n_decode_total THEN 0.1 ELSE 2 END END THEN later.spec_decode_num_accepted_tokens_total ELSE CASE WHEN later.spec_decode_num_accepted_tokens_total - earlier.spec_decode_num_accepted_tokens_total < 0 THEN 0 ELSE later.spec_decode_num_accepted_tokens_total - earlier.spec_decode_num_accepted_tokens_total END END AS accepted_tokens
FROM llama_metrics AS later
LEFT JOIN llama_metrics AS earlier ON earlier.id = (
  SELECT id FROM llama_metrics AS one
  WHERE one.model = later.model AND one.timestamp <= later.timestamp
    AND (one.timestamp < later.timestamp OR one.id < later.id) AND one.tokens_predicted_total NOT NULL
  ORDER BY one.timestamp DESC, one.id DESC LIMIT 1);
