"""What is handed over when another database is at the path."""

from collector.catalog import OWN_TABLES
from collector.daemon.supervisor import transferable
from collector.database.buffer import Batch, Retention
from collector.health import COLLECTOR_RUNS
from collector.schema import AUTOMATIC_ID, Column, SqlValue, Table, Write
from collector.sources.llama.metrics import LLAMA_METRICS

REQUESTS = Table(
    "requests",
    "A table that refers to runs and models.",
    (
        Column("id", AUTOMATIC_ID, "key", "ascending"),
        Column("run_id", "INTEGER", "key", "server_runs.id"),
        Column("model_id", "TEXT", "key", "models.id"),
        Column("tokens", "INTEGER", "gauge", "tokens"),
    ),
)


def batch(write: Write) -> Batch:
    return Batch(write.statement, list(write.rows), Retention.KEPT)


def test_references_to_runs_and_models_of_the_old_database_become_unknown() -> None:
    batches = [batch(REQUESTS.insert((7, "model_1", 12))), batch(REQUESTS.replace((8, "model_2", 13)))]
    handed_over = transferable(batches, [*OWN_TABLES, REQUESTS])
    assert [one.rows for one in handed_over] == [[(None, None, 12)], [(None, None, 13)]]


def test_a_sample_of_a_server_keeps_everything_but_its_references() -> None:
    values: dict[str, SqlValue] = {
        "timestamp": 5,
        "model": "m",
        "model_id": "model_1",
        "n_tokens_max": 9,
        "counted_from_zero": 1,
    }
    row = LLAMA_METRICS.row({**values, "run_id": 3})
    (handed_over,) = transferable([batch(LLAMA_METRICS.insert(row))], OWN_TABLES)
    expected = LLAMA_METRICS.row({"timestamp": 5, "model": "m", "n_tokens_max": 9})
    assert handed_over.rows == [expected]


def test_rows_about_runs_stay_with_the_old_database() -> None:
    run = COLLECTOR_RUNS.insert(COLLECTOR_RUNS.row({"started_at": 5}))
    stopped = Write("UPDATE collector_runs SET stopped_at = ? WHERE id = ?", [(6, 1)])
    server = Write("INSERT INTO server_runs (id) VALUES (?)", [(1,)])
    event = Write("INSERT INTO logs (level, message) VALUES (?, ?)", [("info", "text")])
    handed_over = transferable([batch(run), batch(stopped), batch(server), batch(event)], OWN_TABLES)
    assert [one.rows for one in handed_over] == [[("info", "text")]]
