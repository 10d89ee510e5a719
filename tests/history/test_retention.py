import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from collector.catalog import OWN_TABLES
from collector.database import Database, deletion
from collector.database.connection import connect_for_writing
from collector.database.deletion import CHUNK_ROWS, PASS_ROWS
from collector.database.documented import LOGS, METRICS
from collector.database.migrations import migrate
from collector.errors import DatabaseBusy, DatabaseError
from collector.history import shrinking, steps
from collector.history.clock_trust import ClockTrust
from collector.history.retention import LAST_ROWS, MIN_SHARE, Prune, _rows_in_share, _share_to_delete
from collector.history.shrinking import RESERVE_BYTES
from collector.schema import BYTES_PER_MB
from collector.settings import RetentionSettings
from tests.support.collector import Collector

NOW = 1_700_000_000
NO_LIMITS = RetentionSettings(metrics_max_rows=0, logs_max_rows=0)
TABLES = {table.name: table for table in (METRICS, LOGS, *OWN_TABLES)}
INTERVAL = 5


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(tmp_path / "data" / "llama-dashboard.db", OWN_TABLES) as opened:
        yield opened


def fill(database: Database, samples: int, lines: int, width: int = 50) -> None:
    """Insert samples up to now, each with two GPUs and, in the older half of the time, a model, and log lines."""
    times = [NOW - INTERVAL * (samples - number) for number in range(samples)]
    with database.transaction() as connection:
        for table, rows in {
            "metrics": ((time, 1.0) for time in times),
            "host_metrics": ((time, 1.0) for time in times),
            "gpu_metrics": ((time, 1.0) for time in times for _ in range(2)),
            "llama_metrics": ((time, 1.0) for time in times[: samples // 2]),
        }.items():
            values = {"llama_metrics": "model, timestamp, cpu_usage) VALUES ('m', ?, ?"}.get(
                table,
                f"timestamp, {'gpu_index, ' if table == 'gpu_metrics' else ''}{'cpu' if 'gpu' not in table else 'gpu'}_usage) "
                f"VALUES (?, {'0, ' if table == 'gpu_metrics' else ''}?",
            )
            connection.executemany(f"INSERT INTO {table} ({values})", rows)
        connection.executemany(
            LOGS.insert_statement,
            [("info", "x" * width, "test", NOW - (lines - number) // 10) for number in range(lines)],
        )
        connection.execute(
            "INSERT INTO model_events (timestamp, model, event, state) VALUES (?, 'm', 'loaded', 'loaded')",
            (NOW - INTERVAL * samples,),
        )


def pruning(database: Database, **limits: int) -> Prune:
    settings = replace(NO_LIMITS, **limits)
    return Prune(database, OWN_TABLES, settings, threading.Event(), clock=ClockTrust(lambda: NOW))


def count(database: Database, table: str) -> int:
    return int(database.query(f"SELECT count(*) AS n FROM {table}")[0]["n"])


def oldest(database: Database, table: str) -> int:
    return int(database.query(f"SELECT min(timestamp) AS t FROM {table}")[0]["t"])


def test_without_limits_no_row_is_deleted(database: Database) -> None:
    fill(database, 2000, 2000)
    assert pruning(database).run().deleted == {}


def test_the_number_of_samples_is_limited_and_all_their_tables_cover_the_same_time(
    database: Database,
) -> None:
    fill(database, 3000, 10)
    deleted = pruning(database, metrics_max_rows=2000).run().deleted
    assert deleted == {"metrics": 1000, "host_metrics": 1000, "gpu_metrics": 2000, "llama_metrics": 1000}
    since = NOW - 2000 * INTERVAL
    assert {oldest(database, table) for table in deleted} == {since}
    assert count(database, "logs") == 10


def test_the_other_sample_tables_stay_limited_where_another_program_prunes_metrics(
    database: Database,
) -> None:
    fill(database, 3000, 0)
    database.metrics.prune(50)
    pruning(database, metrics_max_rows=2000).run()
    assert [count(database, name) for name in ("metrics", "host_metrics", "gpu_metrics")] == [50, 2000, 4000]


def test_the_number_of_log_lines_is_limited(database: Database) -> None:
    fill(database, 10, 3005)
    assert pruning(database, logs_max_rows=1000).run().deleted == {"logs": 2005}
    assert database.logs.get_all(1)[0]["id"] == 3005


def test_rows_older_than_the_maximum_age_are_deleted_from_all_tables(database: Database) -> None:
    fill(database, 40_000, 10)
    deleted = pruning(database, max_age_days=1).run().deleted
    per_day = 86_400 // INTERVAL
    assert count(database, "metrics") == per_day
    assert count(database, "gpu_metrics") == 2 * per_day
    assert deleted["model_events"] == 1
    assert "logs" not in deleted


def test_a_model_is_never_deleted(database: Database) -> None:
    database.models.save({"name": "kept", "created_at": 1})
    fill(database, 2000, 2000)
    pruning(database, metrics_max_rows=1000, logs_max_rows=1000, max_age_days=1).run()
    assert count(database, "models") == 1


def test_the_size_of_the_file_is_limited_and_samples_and_log_lines_lose_the_same_share(
    database: Database,
) -> None:
    fill(database, 30_000, 30_000, width=400)
    before = database.path.stat().st_size
    assert before > 20 * BYTES_PER_MB
    summary = pruning(database, max_database_mb=10).run()
    assert summary.size_before_bytes == before
    assert summary.size_after_bytes == database.path.stat().st_size <= 10 * BYTES_PER_MB
    samples, lines = count(database, "metrics"), count(database, "logs")
    assert 8_000 < samples < 20_000
    assert abs(samples - lines) < 0.02 * samples
    assert oldest(database, "gpu_metrics") == oldest(database, "metrics")
    assert pruning(database, max_database_mb=10).run().deleted == {}


@pytest.mark.parametrize(
    ("used_mb", "rows", "share"),
    [
        (190, (80_000, 40_000), 0.5),
        (95.001, (80_000, 40_000), MIN_SHARE),  # else there would be many rounds
        (190, (80_000, 10 * PASS_ROWS), 0.1),  # else the boundary of 500,000 rows would be searched
        (190, (0, 0), 0.5),
    ],
)
def test_each_round_deletes_the_share_that_is_too_much(
    used_mb: float, rows: tuple[int, ...], share: float
) -> None:
    assert _share_to_delete(used_mb, 95, rows) == pytest.approx(share)


def test_a_share_of_a_table_leaves_its_newest_rows() -> None:
    assert _rows_in_share(10 * LAST_ROWS, 0.5) == 5 * LAST_ROWS
    assert _rows_in_share(2 * LAST_ROWS, 0.9) == LAST_ROWS
    assert _rows_in_share(LAST_ROWS, 0.5) == 0


def test_a_size_that_cannot_be_reached_is_reported_and_the_newest_rows_are_kept(database: Database) -> None:
    fill(database, 2 * LAST_ROWS, 2 * LAST_ROWS)
    with database.transaction() as connection:
        connection.execute("CREATE TABLE theirs (blob)")
        connection.executemany("INSERT INTO theirs VALUES (zeroblob(1000000))", [()] * 20)
    with pytest.raises(DatabaseError, match="max_database_mb = 10"):
        pruning(database, max_database_mb=10).run()
    assert count(database, "metrics") == count(database, "logs") == LAST_ROWS
    assert count(database, "theirs") == 20


def test_free_pages_are_returned_to_the_file_system_except_for_a_reserve(database: Database) -> None:
    fill(database, 10, 40_000, width=400)
    summary = pruning(database, logs_max_rows=1000).run()
    (free,) = database.query("PRAGMA freelist_count")
    assert summary.size_after_bytes < summary.size_before_bytes / 2
    assert RESERVE_BYTES - BYTES_PER_MB < free["freelist_count"] * 4096 <= RESERVE_BYTES


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[Database]:
    path = tmp_path / "foreign.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(LOGS.create_statement)
    with Database(path, OWN_TABLES) as opened:
        fill(opened, 2000, 40_000, width=400)
        yield opened


def test_a_mostly_free_file_of_another_program_is_rewritten(foreign: Database) -> None:
    summary = pruning(foreign, logs_max_rows=1000).run()
    assert summary.size_after_bytes < summary.size_before_bytes / 10
    assert foreign.query("PRAGMA auto_vacuum") == [{"auto_vacuum": 2}]


def test_a_large_file_of_another_program_is_not_rewritten_while_the_collector_runs(
    foreign: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shrinking, "REWRITE_MAX_BYTES", 1000)
    job = pruning(foreign, logs_max_rows=1000)
    summary, _ = job.run(), job.run()
    assert summary.size_after_bytes == summary.size_before_bytes
    assert capsys.readouterr().out.count("llama-collector prune --vacuum") == 1


def test_the_statistics_of_the_indexes_are_updated_after_rows_were_deleted(database: Database) -> None:
    fill(database, 10, 3000)
    pruning(database, logs_max_rows=1000).run()
    analyzed = {row["idx"] for row in database.query("SELECT idx FROM sqlite_stat1 WHERE tbl = 'logs'")}
    assert analyzed == {index.name for index in LOGS.indexes}


def test_a_prune_ends_at_once_when_the_collector_stops_and_the_next_run_continues(database: Database) -> None:
    fill(database, 10, 20_000)
    stop = threading.Event()
    job = Prune(database, OWN_TABLES, replace(NO_LIMITS, logs_max_rows=1000), stop)
    first = job.run(lambda _deleted: stop.set()).deleted["logs"]
    assert 0 < first < 19_000
    stop.clear()
    assert first + job.run().deleted["logs"] == 19_000


def test_other_threads_use_the_connection_between_two_chunks(database: Database) -> None:
    fill(database, 10, 20_000)
    waited = []

    def another_thread(_deleted: int) -> None:
        started = time.monotonic()
        adding = threading.Thread(target=database.logs.add, args=("info", "beside", "test"))
        adding.start()
        adding.join(10)
        assert not adding.is_alive()
        waited.append(time.monotonic() - started)

    pruning(database, logs_max_rows=1000).run(another_thread)
    assert len(waited) >= 19_000 / CHUNK_ROWS
    assert count(database, "logs") <= 1000 + len(waited)
    assert database.logs.get_all(1)[0]["message"] == "beside"


def test_no_table_is_counted_in_one_step(database: Database) -> None:
    fill(database, samples=1500, lines=1500)
    statements: list[str] = []
    database._connection.set_trace_callback(statements.append)
    pruning(database, metrics_max_rows=1000, logs_max_rows=1000).run()
    counts = [statement for statement in statements if "count(*)" in statement]
    assert counts
    assert [statement for statement in counts if "WHERE" not in statement] == []


def test_a_table_that_cannot_have_too_many_rows_is_not_counted(database: Database) -> None:
    fill(database, samples=1000, lines=1000)
    statements: list[str] = []
    database._connection.set_trace_callback(statements.append)
    pruning(database, metrics_max_rows=1000, logs_max_rows=0).run()
    assert [statement for statement in statements if "count(*)" in statement] == []


def test_rows_that_another_program_deletes_meanwhile_do_not_end_a_prune(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(database, samples=1500, lines=1500)
    really_count = deletion.count_rows

    def count_and_clear(*arguments: Any) -> int:
        counted = really_count(*arguments)
        database.logs.clear()
        return counted

    monkeypatch.setattr(deletion, "count_rows", count_and_clear)
    pruning(database, metrics_max_rows=0, logs_max_rows=1000).run()
    assert count(database, "logs") == 0
    assert count(database, "metrics") == 1500


def test_a_reader_delays_a_prune_and_does_not_end_it(database: Database) -> None:
    fill(database, 10, 20_000)
    with closing(sqlite3.connect(database.path, check_same_thread=False)) as reader:
        cursor = reader.execute("SELECT * FROM logs")
        cursor.fetchone()
        releasing = threading.Timer(0.3, cursor.close)
        releasing.start()
        assert pruning(database, logs_max_rows=1000).run().deleted == {"logs": 19_000}
        releasing.join()


def test_a_lock_that_remains_is_reported_and_what_was_deleted_remains_deleted(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "BUSY_TIMEOUT_SECONDS", 0)
    fill(database, 10, 20_000)
    with closing(sqlite3.connect(database.path)) as reader:
        cursor = reader.cursor()
        with pytest.raises(DatabaseBusy):
            pruning(database, logs_max_rows=1000).run(
                lambda _: cursor.execute("SELECT * FROM logs").fetchone()
            )
        cursor.close()
    assert 1000 < count(database, "logs") < 20_000


QUIET = '[llama_server]\nurl = ""\n[gpu]\nenabled = false\n'


def test_a_collector_prunes_by_itself_and_the_command_says_so(tmp_path: Path) -> None:
    collector = Collector(tmp_path, f"{QUIET}[retention]\nmetrics_max_rows = 1000\n")
    with Database(collector.database, OWN_TABLES) as opened:
        fill(opened, 1500, 0)
    with collector:
        collector.wait_for("SELECT 1 FROM (SELECT count(*) AS n FROM metrics) WHERE n < 1100")
        collector.wait_for("SELECT 1 FROM collector_health WHERE name = 'prune' AND state = 'ok'")
        refused = collector.call("prune")
        assert collector.stop() == 0
    assert refused.returncode == 1
    assert "It prunes every 3600 s by itself" in refused.stderr


def test_the_command_prunes_and_prints_what_was_deleted(tmp_path: Path) -> None:
    collector = Collector(tmp_path, f"{QUIET}[retention]\nlogs_max_rows = 1000\n")
    with Database(collector.database, OWN_TABLES) as opened:
        fill(opened, 10, 1500)
    first, second = collector.call("prune", "--vacuum"), collector.call("prune")
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.startswith("deleted 500 logs; ")
    assert second.stdout.startswith("deleted nothing; ")


def test_the_command_creates_no_database(tmp_path: Path) -> None:
    collector = Collector(tmp_path, QUIET)
    assert collector.call("prune").returncode == 1
    assert not collector.database.exists()


@pytest.mark.slow
def test_on_a_full_disk_a_prune_fails_without_loss_and_succeeds_once_there_is_space(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", disk], check=True)
    try:
        ballast = disk / "ballast"
        with Database(disk / "llama.db", OWN_TABLES) as database:
            fill(database, 10, 20_000, width=400)
            with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
                while True:
                    file.write(bytes(4096))
            with pytest.raises(DatabaseError, match="disk is full"):
                pruning(database, logs_max_rows=1000).run()
            assert count(database, "logs") == 20_000
            ballast.unlink()
            assert pruning(database, logs_max_rows=1000).run().deleted == {"logs": 19_000}
            assert database.query("PRAGMA integrity_check") == [{"integrity_check": "ok"}]
    finally:
        subprocess.run(["umount", disk], check=True)


KILLS, ROWS, KEPT = 100, 20_000, 2000


def killed_prune(path: Path, after_seconds: float) -> bool:
    """Prune in a process of its own and kill it; return whether it was still running."""
    command = [sys.executable, "-m", "tests.support.prune", str(path), str(KEPT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        time.sleep(after_seconds)
        process.kill()
        return process.stdout.read() != b"done\n"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_kill_loses_a_row_that_is_kept_or_damages_the_file(tmp_path: Path) -> None:
    path = tmp_path / "killed.db"
    chance, running = random.Random(KILLS), 0
    for _ in range(KILLS):
        with closing(connect_for_writing(path)) as connection:
            list(migrate(connection, (LOGS, METRICS)))
            (present,) = connection.execute("SELECT count(*) FROM logs").fetchone()
            connection.execute("BEGIN")
            connection.executemany(
                LOGS.insert_statement, [("info", "x" * 200, "test", NOW)] * (ROWS - present)
            )
            connection.execute("COMMIT")
            newest = connection.execute("SELECT * FROM logs ORDER BY id DESC LIMIT ?", (KEPT,)).fetchall()
        running += killed_prune(path, chance.uniform(0, 0.2))
        with closing(connect_for_writing(path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            left = connection.execute("SELECT * FROM logs ORDER BY id DESC").fetchall()
        assert left[:KEPT] == newest
    assert running > KILLS / 2


def test_a_file_counts_as_too_large_only_with_a_limit_and_while_a_prune_can_change_that(
    database: Database,
) -> None:
    fill(database, 2000, 20_000)
    stop = threading.Event()
    assert not Prune(database, OWN_TABLES, NO_LIMITS, stop).is_too_large()
    assert not Prune(database, OWN_TABLES, replace(NO_LIMITS, max_database_mb=100), stop).is_too_large()
    small = Prune(database, OWN_TABLES, replace(NO_LIMITS, max_database_mb=1), stop)
    assert small.is_too_large()
    small._is_stuck = True
    assert not small.is_too_large()
