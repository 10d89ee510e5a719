"""The five tables of the documented contract, exactly: names, columns, order, types, defaults.

Other programs are written against them. Columns are only ever added, at the end.
"""

from collector.schema import AUTOMATIC_ID, Column, Index, Table

MODELS = Table(
    "models",
    "One row per model: what its file contains, its state in the server, what the user noted.",
    (
        Column("id", "TEXT PRIMARY KEY", "key", "model_{timestamp}_{random}"),
        Column("name", "TEXT NOT NULL", "label", "file name without extension, or the server's name for it"),
        Column("type", "TEXT DEFAULT 'llama'", "label", "architecture: llama, qwen2, gemma3, …"),
        Column("status", "TEXT DEFAULT 'idle'", "state", "idle, loaded, loading, error, unloaded"),
        Column("parameters", "TEXT DEFAULT '{}'", "text", "JSON object of the user's parameters"),
        Column("model_path", "TEXT", "label", "path of the file"),
        Column("file_size", "INTEGER", "gauge", "bytes"),
        Column("params", "TEXT", "text", "JSON object of the architecture, from the file's header"),
        Column("quantization", "TEXT", "label", "Q4_K_M, Q8_0, F16, …"),
        Column("ctx_size", "INTEGER DEFAULT 4096", "gauge", "context window in tokens"),
        Column("embedding_size", "INTEGER DEFAULT 0", "gauge", "width of the embedding; 0 = not known"),
        Column("block_count", "INTEGER DEFAULT 0", "gauge", "transformer blocks; 0 = not known"),
        Column("head_count", "INTEGER DEFAULT 0", "gauge", "attention heads per layer; 0 = not known"),
        Column(
            "head_count_kv", "INTEGER DEFAULT 0", "gauge", "key-value heads per layer; 0 = as many as heads"
        ),
        Column("ffn_dim", "INTEGER DEFAULT 0", "gauge", "width of the feed-forward layer; 0 = not known"),
        Column("file_type", "INTEGER DEFAULT 0", "label", "GGUF file type number; 0 = not known, or F32"),
        Column("batch_size", "INTEGER DEFAULT 512", "gauge", "tokens per batch"),
        Column("threads", "INTEGER DEFAULT 4", "gauge", "CPU threads"),
        Column("favorite", "INTEGER DEFAULT 0", "state", "1 = marked by the user"),
        Column("created_at", "INTEGER", "time", "Unix seconds of the first save"),
        Column("updated_at", "INTEGER", "time", "Unix seconds of the last change"),
    ),
    (
        Index("idx_models_status", "status"),
        Index("idx_models_name", "name"),
        Index("idx_models_created", "created_at DESC"),
    ),
)

METRICS = Table(
    "metrics",
    "One row per sample: an overview of llama-server, its GPUs and its disk.",
    (
        Column("id", AUTOMATIC_ID, "key", "ascending"),
        Column(
            "cpu_usage",
            "REAL",
            "gauge",
            "all llama-server processes, percent of all cores (0-100); NULL = not to be seen",
        ),
        Column(
            "memory_usage",
            "REAL",
            "gauge",
            "all llama-server processes, percent of the RAM (0-100); NULL = not to be seen",
        ),
        Column("disk_usage", "REAL", "gauge", "partition of the models directory, percent (0-100)"),
        Column("active_models", "INTEGER", "gauge", "models loaded and ready; NULL = the server did not say"),
        Column(
            "uptime",
            "REAL",
            "gauge",
            "llama-server's seconds since its start; 0 = not running, NULL = not to be seen",
        ),
        Column("gpu_usage", "REAL DEFAULT 0", "gauge", "mean over the GPUs, percent (0-100); 0 without GPU"),
        Column("gpu_memory_used", "REAL DEFAULT 0", "gauge", "sum over the GPUs, MB of 1,048,576 bytes"),
        Column("gpu_memory_total", "REAL DEFAULT 0", "gauge", "sum over the GPUs, MB of 1,048,576 bytes"),
        Column("swap_usage", "REAL DEFAULT 0", "gauge", "the host's, percent (0-100); 0 without swap"),
        Column("timestamp", "INTEGER DEFAULT (strftime('%s', 'now'))", "time", "Unix seconds of the sample"),
    ),
    (Index("idx_metrics_timestamp", "timestamp DESC"),),
)

LOGS = Table(
    "logs",
    "One row per log record: llama-server's lines and the collector's own events.",
    (
        Column("id", AUTOMATIC_ID, "key", "ascending, in the order of arrival"),
        Column("level", "TEXT NOT NULL", "label", "debug, info, warn, error, critical"),
        Column("message", "TEXT NOT NULL", "text", "the text, without colours and prefix"),
        Column("source", "TEXT", "label", "llama-server, a model's name, or collector"),
        Column("timestamp", "INTEGER DEFAULT (strftime('%s', 'now'))", "time", "Unix seconds"),
    ),
    (
        Index("idx_logs_timestamp", "timestamp DESC"),
        Index("idx_logs_source", "source"),
        Index("idx_logs_level", "level"),
    ),
)

SERVER_CONFIG = Table(
    "server_config",
    "Settings that other programs keep for llama-server.",
    (
        Column("key", "TEXT PRIMARY KEY", "key", "config"),
        Column("value", "TEXT NOT NULL", "text", "JSON"),
    ),
)

METADATA = Table(
    "metadata",
    "Any other value, by key.",
    (
        Column("key", "TEXT PRIMARY KEY", "key", "name of the value"),
        Column("value", "TEXT NOT NULL", "text", "JSON"),
        Column("updated_at", "INTEGER", "time", "Unix seconds of the last change"),
    ),
    (Index("idx_metadata_key", "key"),),
)

DOCUMENTED_TABLES = (MODELS, METRICS, LOGS, SERVER_CONFIG, METADATA)
