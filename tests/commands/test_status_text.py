"""The speed that `status` shows of each model, and where it comes from."""

import time
from pathlib import Path
from typing import Any

import pytest

from collector.catalog import open_database
from collector.commands.status import read_status
from collector.commands.status_text import format_status
from collector.database.documented import METRICS
from collector.logs.rows.requests import REQUESTS
from collector.sources.llama.metrics import LLAMA_METRICS

NOW = int(time.time())
REQUEST: dict[str, Any] = {
    "task": 1,
    "time_source": "stamp",
    "outcome": "finished",
    "model": "m",
    "generated_tokens": 11,
}


@pytest.mark.parametrize(
    ("requests", "shown"),
    [
        ([], "20.0 tokens/s"),
        ([{"timestamp": NOW - 3, "generation_ms": 200.0}], "50.0 tokens/s"),
        ([{"timestamp": NOW - 3, "generation_ms": 200.0}, {"timestamp": NOW - 2, "outcome": "error"}], "50.0 tokens/s"),
        ([{"timestamp": NOW - 9000, "generation_ms": 200.0}], "20.0 tokens/s"),
        ([{"timestamp": NOW - 3, "generation_ms": 200.0, "model": "other"}], "20.0 tokens/s"),
    ],
)  # fmt: skip
def test_the_speed_is_that_of_the_last_request_where_the_log_is_read(
    requests: list[dict[str, Any]], shown: str, tmp_path: Path
) -> None:
    with open_database(tmp_path / "d.db") as database, database.transaction() as connection:
        connection.execute(METRICS.insert_statement, METRICS.row({"timestamp": NOW, "uptime": 9.0}))
        counted: dict[str, Any] = {"timestamp": NOW, "model": "m", "predicted_tokens_per_second": 20.0}
        connection.execute(LLAMA_METRICS.insert_statement, LLAMA_METRICS.row(counted))
        for row in requests:
            connection.execute(REQUESTS.insert_statement, REQUESTS.row(REQUEST | row))
    lines = format_status(read_status(tmp_path / "d.db"), colours=False)
    (line,) = [line for line in lines if "last speed" in line]
    source = "last request" if shown.startswith("50") else "counters"
    assert f"last speed {shown}" in line
    assert line.endswith(source)
