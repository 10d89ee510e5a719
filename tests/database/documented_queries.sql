-- Every statement of the document's chapter 10.

-- Get all loaded models
SELECT * FROM models WHERE status = 'loaded';

-- Get all idle models ordered by name
SELECT * FROM models WHERE status = 'idle' ORDER BY name ASC;

-- Get models with error status
SELECT * FROM models WHERE status = 'error';

-- Get metrics from the last hour (3600 seconds)
SELECT * FROM metrics
WHERE timestamp >= strftime('%s', 'now') - 3600
ORDER BY timestamp DESC;

-- Get average metrics over the last hour
SELECT
  AVG(cpu_usage) as avg_cpu,
  AVG(memory_usage) as avg_memory,
  AVG(gpu_usage) as avg_gpu
FROM metrics
WHERE timestamp >= strftime('%s', 'now') - 3600;

-- Get all error and critical logs
SELECT * FROM logs
WHERE level IN ('error', 'critical')
ORDER BY timestamp DESC
LIMIT 100;

-- Get logs from a specific source
SELECT * FROM logs
WHERE source = 'llama-server'
ORDER BY timestamp DESC
LIMIT 50;

-- Get recent error logs with their timestamps
SELECT id, level, message, timestamp FROM logs
WHERE level = 'error'
ORDER BY timestamp DESC
LIMIT 20;

-- Count loaded models
SELECT COUNT(*) as count FROM models WHERE status = 'loaded';

-- Get status distribution
SELECT status, COUNT(*) as count
FROM models
GROUP BY status;

-- Get the largest model by file size
SELECT * FROM models
WHERE file_size IS NOT NULL
ORDER BY file_size DESC
LIMIT 1;

-- Get models sorted by file size descending
SELECT id, name, file_size, quantization
FROM models
WHERE file_size IS NOT NULL
ORDER BY file_size DESC;

-- Get model summary with usage statistics
SELECT
  m.id,
  m.name,
  m.status,
  m.file_size,
  COUNT(DISTINCT mt.id) as metrics_samples,
  COUNT(DISTINCT l.id) as log_entries
FROM models m
LEFT JOIN metrics mt ON mt.active_models > 0
LEFT JOIN logs l ON l.source = m.name
GROUP BY m.id
ORDER BY m.created_at DESC;
