"""Retention with clocks that are wrong and logs that are too long: nothing true is deleted, and the file stays small."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from collector.catalog import OWN_TABLES, open_database
from collector.database import Database
from collector.database.documented import METRICS
from collector.errors import DatabaseError
from collector.history.clock_trust import DISTRUST_SECONDS, ClockTrust
from collector.history.retention import Prune
from collector.settings import RetentionSettings
from tests.support.collector import Collector
from tests.trouble.test_output import SETTINGS

NOW, DAY, YEAR = 1_790_000_000, 86_400, 365 * 86_400
NINETY_DAYS = replace(RetentionSettings(), metrics_max_rows=0, logs_max_rows=0, max_age_days=90)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """A database with a sample of each of the last 200 days."""
    with open_database(tmp_path / "llama.db") as opened:
        with opened.transaction() as connection:
            rows = [METRICS.row({"timestamp": NOW - day * DAY}) for day in reversed(range(200))]
            connection.executemany(METRICS.insert_statement, rows)
        yield opened


class Clocks:
    """A wall clock that is set, and one that is not."""

    def __init__(self, wall: float, *, synchronized: bool = False) -> None:
        self.wall, self.monotonic, self.synchronized = wall, 1000.0, synchronized

    def trust(self) -> ClockTrust:
        return ClockTrust(lambda: self.wall, lambda: self.monotonic, lambda: self.synchronized)

    def advance(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds


def prune(database: Database, clocks: Clocks) -> Prune:
    return Prune(database, OWN_TABLES, NINETY_DAYS, threading.Event(), clocks.trust())


def samples(database: Database) -> int:
    return int(database.query("SELECT count(*) AS n FROM metrics")[0]["n"])


def test_a_right_clock_deletes_what_is_too_old(database: Database) -> None:
    prune(database, Clocks(NOW + 60)).run()
    assert samples(database) == 90


def test_a_clock_that_is_a_year_ahead_at_the_start_deletes_nothing(database: Database) -> None:
    clocks = Clocks(NOW + YEAR)
    pruning = prune(database, clocks)
    with database.transaction() as connection:  # the first sample has the wrong time as well
        connection.execute(METRICS.insert_statement, METRICS.row({"timestamp": NOW + YEAR}))
    pruning.run()
    clocks.advance(20)
    clocks.wall -= YEAR
    pruning.run()
    assert samples(database) == 201
    clocks.advance(DISTRUST_SECONDS + 1)
    pruning.run()
    assert samples(database) == 90, "a day later what is too old by the right clock is deleted"


def test_a_clock_that_jumps_while_the_collector_runs_deletes_nothing_for_a_day(database: Database) -> None:
    clocks = Clocks(NOW + 60)
    pruning = prune(database, clocks)
    pruning.run()
    clocks.wall += YEAR
    pruning.run()
    assert samples(database) == 90


def test_after_a_long_pause_a_synchronized_clock_is_believed(database: Database) -> None:
    prune(database, Clocks(NOW + YEAR, synchronized=True)).run()
    assert samples(database) == 0


def test_a_clock_that_is_right_by_less_than_a_day_is_believed(database: Database) -> None:
    clocks = Clocks(NOW + 60)
    pruning = prune(database, clocks)
    pruning.run()
    clocks.advance(3600)
    clocks.wall += DAY - 10
    pruning.run()
    assert samples(database) == 89


@pytest.mark.slow
def test_the_file_stays_near_its_limit_while_a_long_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "llama.log"
    line = "0.00.000.000 I srv  update_slots: all slots are idle, and here is some text to make the line long"
    lines = 25 * 2**20 // len(line)
    log.write_text(f"{line}\n" * lines)
    settings = SETTINGS + f'[logs]\nfiles = ["{log}"]\n[retention]\nlogs_max_rows = 0\nmax_database_mb = 10\n'
    largest = 0
    with Collector(tmp_path, settings) as collector:
        collector.wait_for("SELECT 1 FROM metrics")
        while True:
            largest = max(largest, collector.database.stat().st_size)
            position = collector.query("SELECT position FROM log_positions WHERE name <> 'journal'")
            if position and f'"offset": {log.stat().st_size}' in position[0]["position"]:
                break
            assert collector.process
            assert collector.process.poll() is None
            time.sleep(0.05)
        assert collector.stop() == 0
    assert largest < 25 * 2**20


def test_a_distrusted_clock_is_told_once_each_time(database: Database) -> None:
    clocks = Clocks(NOW + YEAR)
    pruning = prune(database, clocks)
    with capture_logs() as events:
        for _ in range(3):
            pruning.run()
    assert len([event for event in events if "the clock has jumped" in event["event"]]) == 1
    clocks.advance(DISTRUST_SECONDS)
    with capture_logs() as events:
        pruning.run()  # exactly a day later it is trusted again
        assert samples(database) == 0
        clocks.wall += 2 * YEAR
        pruning.run()
    assert len([event for event in events if "the clock has jumped" in event["event"]]) == 1


def test_a_clock_is_trusted_from_the_first_moment_after_a_boot() -> None:
    clocks = Clocks(NOW)
    clocks.monotonic = 0.5
    assert clocks.trust().is_trusted(NOW)


def test_a_size_that_cannot_be_reached_is_tried_again_only_by_the_next_prune(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute("CREATE TABLE theirs (blob)")
        connection.executemany("INSERT INTO theirs VALUES (zeroblob(1000000))", [()] * 12)
    settings = replace(NINETY_DAYS, max_age_days=0, max_database_mb=10)
    pruning = Prune(database, OWN_TABLES, settings, threading.Event())
    assert pruning.is_too_large()
    with pytest.raises(DatabaseError, match="max_database_mb"):
        pruning.run()
    assert not pruning.is_too_large()
    with database.transaction() as connection:
        connection.execute("DROP TABLE theirs")
    pruning.run()
    assert not pruning.is_too_large()
    with database.transaction() as connection:
        connection.execute("CREATE TABLE more (blob)")
        connection.executemany("INSERT INTO more VALUES (zeroblob(1000000))", [()] * 12)
    assert pruning.is_too_large(), "the last prune has reached the size"
