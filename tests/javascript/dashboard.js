// The documented dashboard: the repositories of chapter 9 of the database's documentation, written from that
// document alone, with the driver that it names. Nothing here knows the collector.
//
// node dashboard.js read FILE QUERIES.sql    every call that reads, and every statement of chapter 10
// node dashboard.js write FILE               every call that writes, on a copy
//
// Prints what each call returned, as one JSON object.
"use strict";

const fs = require("node:fs");
const os = require("node:os");
const path = require("node:path");
const Database = require("better-sqlite3");

const now = () => Math.floor(Date.now() / 1000);

const MODEL_FIELDS = [
  "name", "type", "status", "parameters", "model_path", "file_size", "params", "quantization", "ctx_size",
  "embedding_size", "block_count", "head_count", "head_count_kv", "ffn_dim", "file_type", "batch_size",
  "threads", "favorite",
];
const METRIC_FIELDS = [
  "cpu_usage", "memory_usage", "disk_usage", "active_models", "uptime", "gpu_usage", "gpu_memory_used",
  "gpu_memory_total", "swap_usage",
];
const DEFAULT_CONFIG = {
  serverPath: "/usr/local/bin/llama-server",
  host: "localhost",
  port: 8080,
  baseModelsPath: path.join(os.homedir(), "models"),
  ctx_size: 2048,
  batch_size: 512,
  threads: 4,
  llama_server_enabled: true,
  llama_server_port: 8080,
  llama_server_host: "0.0.0.0",
  llama_server_metrics: true,
};

class Models {
  constructor(db) { this.db = db; }

  getAll() { return this.db.prepare("SELECT * FROM models ORDER BY created_at DESC").all(); }

  getById(id) { return this.db.prepare("SELECT * FROM models WHERE id = ?").get(id) ?? null; }

  getFavorites() { return this.db.prepare("SELECT * FROM models WHERE favorite = 1 ORDER BY name ASC").all(); }

  save(model) {
    const id = model.id ?? `model_${now()}_${Math.random().toString(36).slice(2, 11)}`;
    const row = { ...model, id, created_at: model.created_at ?? now(), updated_at: now() };
    const names = Object.keys(row);
    const marks = names.map((name) => `@${name}`);
    this.db.prepare(`INSERT OR REPLACE INTO models (${names}) VALUES (${marks})`).run(row);
    return this.getById(id);
  }

  update(id, updates) {
    const names = Object.keys(updates).filter((name) => MODEL_FIELDS.includes(name));
    if (names.length === 0) return null;
    const assignments = names.map((name) => `${name} = @${name}`);
    const statement = `UPDATE models SET ${assignments}, updated_at = @updated_at WHERE id = @id`;
    const change = this.db.transaction(() => this.db.prepare(statement).run({ ...updates, updated_at: now(), id }));
    return change().changes ? this.getById(id) : null;
  }

  delete(id) { return this.db.prepare("DELETE FROM models WHERE id = ?").run(id).changes > 0; }

  cleanupMissingFiles() {
    const missing = this.getAll().filter((model) => model.model_path && !fs.existsSync(model.model_path));
    this.db.transaction(() => missing.forEach((model) => this.delete(model.id)))();
    return missing.length;
  }
}

class Metrics {
  constructor(db) { this.db = db; }

  save(metrics) {
    const marks = METRIC_FIELDS.map((name) => `@${name}`);
    const row = Object.fromEntries(METRIC_FIELDS.map((name) => [name, metrics[name] ?? 0]));
    this.db.prepare(`INSERT INTO metrics (${METRIC_FIELDS}) VALUES (${marks})`).run(row);
  }

  getHistory(limit = 100) { return this.db.prepare("SELECT * FROM metrics ORDER BY timestamp DESC LIMIT ?").all(limit); }

  getLatest() { return this.db.prepare("SELECT * FROM metrics ORDER BY timestamp DESC LIMIT 1").get() ?? null; }

  prune(maxRecords = 10000) {
    const { count } = this.db.prepare("SELECT COUNT(*) AS count FROM metrics").get();
    if (count <= maxRecords) return 0;
    const oldest = "DELETE FROM metrics WHERE id IN (SELECT id FROM metrics ORDER BY timestamp ASC LIMIT ?)";
    return this.db.prepare(oldest).run(count - maxRecords).changes;
  }
}

class Logs {
  constructor(db) { this.db = db; }

  getAll(limit = 100) { return this.db.prepare("SELECT * FROM logs ORDER BY timestamp DESC LIMIT ?").all(limit); }

  add(level, message, source = "server") {
    this.db.prepare("INSERT INTO logs (level, message, source) VALUES (?, ?, ?)").run(level, message, source);
  }

  clear() { return this.db.prepare("DELETE FROM logs").run().changes; }
}

class Config {
  constructor(db) { this.db = db; }

  get() {
    const row = this.db.prepare("SELECT value FROM server_config WHERE key = ?").get("config");
    return { ...DEFAULT_CONFIG, ...(row ? JSON.parse(row.value) : {}) };
  }

  save(config) {
    this.db.prepare("INSERT OR REPLACE INTO server_config (key, value) VALUES (?, ?)")
      .run("config", JSON.stringify(config));
  }
}

class Metadata {
  constructor(db) { this.db = db; }

  get(key, defaultValue) {
    const row = this.db.prepare("SELECT value FROM metadata WHERE key = ?").get(key);
    return row ? JSON.parse(row.value) : defaultValue;
  }

  set(key, value) {
    this.db.prepare("INSERT OR REPLACE INTO metadata (key, value, updated_at) VALUES (?, ?, ?)")
      .run(key, JSON.stringify(value), now());
  }
}

function open(file, options) {
  const connection = new Database(file, { fileMustExist: true, ...options });
  return {
    connection,
    models: new Models(connection),
    metrics: new Metrics(connection),
    logs: new Logs(connection),
    config: new Config(connection),
    meta: new Metadata(connection),
  };
}

function read(file, queries) {
  const db = open(file, { readonly: true });
  const models = db.models.getAll();
  const statements = fs.readFileSync(queries, "utf8").replace(/^--.*$/gm, "").split(";");
  return {
    models: { getAll: models, getById: db.models.getById(models[0].id), getFavorites: db.models.getFavorites(),
      missing: db.models.getById("model_0_none") },
    metrics: { getHistory: db.metrics.getHistory(3), getLatest: db.metrics.getLatest() },
    logs: { getAll: db.logs.getAll(50) },
    config: { get: db.config.get() },
    meta: { get: db.meta.get("lastScanTime", 0), missing: db.meta.get("nothing", { theme: "dark" }) },
    queries: statements.filter((text) => text.trim()).map((text) => db.connection.prepare(text).all().length),
  };
}

function write(file) {
  const db = open(file);
  const saved = db.models.save({ name: "from-javascript", type: "llama", status: "idle", file_size: 4268994560,
    model_path: "/no/such/model.gguf" });
  const replaced = db.models.save({ ...saved, quantization: "Q4_K_M" });
  const kept = db.models.save({ name: "kept", parameters: JSON.stringify({ temperature: 0.7 }) });
  const other = db.models.save({ name: "other" });
  const records = () => db.connection.prepare("SELECT COUNT(*) AS count FROM metrics").get().count;
  const result = {
    saved, replaced,
    updated: db.models.update(saved.id, { status: "loaded", favorite: 1 }),
    notUpdated: [db.models.update("model_0_none", { status: "idle" }), db.models.update(saved.id, { nothing: 1 })],
    favorites: db.models.getFavorites().map((model) => model.id),
    cleaned: db.models.cleanupMissingFiles(),
    deleted: [db.models.delete(other.id), db.models.delete(other.id)],
    kept: kept.id,
  };
  db.metrics.save({ cpu_usage: 45.5, active_models: 2 });
  result.latest = db.connection.prepare("SELECT * FROM metrics ORDER BY id DESC LIMIT 1").get();
  db.connection.transaction(() => [1, 2, 3].forEach((number) => db.metrics.save({ cpu_usage: number })))();
  result.pruned = [db.metrics.prune(), records() - db.metrics.prune(2), records()];
  result.logs = db.logs.getAll(1_000_000).length;
  result.cleared = db.logs.clear();
  db.logs.add("info", "said by JavaScript");
  db.config.save({ ...db.config.get(), port: 9090 });
  db.meta.set("userPreferences", { theme: "dark", language: "en" });
  return { ...result, config: db.config.get(), preferences: db.meta.get("userPreferences", {}) };
}

const [call, file, queries] = process.argv.slice(2);
process.stdout.write(JSON.stringify({ read, write }[call](file, queries)));
