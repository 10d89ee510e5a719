import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from collector.database import Database

QUERIES = [
    statement.strip()
    for statement in "\n".join(
        line
        for line in (Path(__file__).parent / "documented_queries.sql").read_text().splitlines()
        if not line.startswith("--")
    ).split(";")
    if statement.strip()
]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("filled") / "filled.db"
    with Database(path) as database, database.transaction() as connection:
        for number in range(60):
            database.models.save(
                {
                    "id": f"model_{number}",
                    "name": f"m{number}",
                    "file_size": number,
                    "status": ("idle", "loaded")[number % 2],
                }
            )
            connection.execute(
                "UPDATE models SET created_at = ? WHERE id = ?", (1000 + number, f"model_{number}")
            )
        connection.executemany(
            "INSERT INTO metrics (cpu_usage, active_models, timestamp) VALUES (?, 1, strftime('%s', 'now') - ?)",
            [(number % 100, number * 10) for number in range(2000)],
        )
        connection.executemany(
            "INSERT INTO logs (level, message, source, timestamp) VALUES (?, 'x', ?, ?)",
            [
                (("info", "error")[number % 50 == 0], ("llama-server", "m1")[number % 3 == 0], number)
                for number in range(2000)
            ],
        )
        connection.execute("ANALYZE")
    return path


def plan(connection: sqlite3.Connection, query: str) -> str:
    return " | ".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}"))


def test_chapter_10_contains_thirteen_statements() -> None:
    assert len(QUERIES) == 13


@pytest.mark.parametrize("query", QUERIES)
def test_every_statement_of_chapter_10_runs(filled: Path, query: str) -> None:
    with closing(sqlite3.connect(filled)) as connection:
        rows = connection.execute(query).fetchall()
    assert rows or ("'error'" in query and "models" in query)


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ("SELECT * FROM models WHERE status = 'loaded'", "idx_models_status"),
        ("SELECT * FROM models WHERE name = 'm3'", "idx_models_name"),
        ("SELECT * FROM models ORDER BY created_at DESC LIMIT 20", "idx_models_created"),
        ("SELECT * FROM metrics WHERE timestamp >= strftime('%s', 'now') - 3600 ORDER BY timestamp DESC", "idx_metrics_timestamp"),
        ("SELECT * FROM logs ORDER BY timestamp DESC LIMIT 50", "idx_logs_timestamp"),
        ("SELECT * FROM logs WHERE level = 'error'", "idx_logs_level"),
        ("SELECT * FROM logs WHERE source = 'm1'", "idx_logs_source"),
        ("SELECT value FROM metadata WHERE key = 'k'", "metadata"),
    ],
)  # fmt: skip
def test_filters_and_orders_of_chapter_11_use_their_index(filled: Path, query: str, index: str) -> None:
    with closing(sqlite3.connect(filled)) as connection:
        found = plan(connection, query)
    assert "USING" in found
    assert index in found
    assert "TEMP B-TREE" not in found


def test_the_hour_query_of_chapter_10_returns_exactly_the_last_hour(filled: Path) -> None:
    with closing(sqlite3.connect(filled)) as connection:
        rows = connection.execute(
            "SELECT timestamp FROM metrics WHERE timestamp >= strftime('%s', 'now') - 3600"
        ).fetchall()
    assert 355 <= len(rows) <= 361


def test_keyset_pagination_returns_every_model_once(filled: Path) -> None:
    seen: list[str] = []
    with closing(sqlite3.connect(filled)) as connection:
        page = connection.execute(
            "SELECT id, created_at FROM models ORDER BY created_at DESC LIMIT 20"
        ).fetchall()
        while page:
            seen += [row[0] for row in page]
            query = "SELECT id, created_at FROM models WHERE created_at < ? ORDER BY created_at DESC LIMIT 20"
            page = connection.execute(query, (page[-1][1],)).fetchall()
    assert len(seen) == len(set(seen)) == 60
