"""Requests of a log that is read: once each, whatever is killed or rotated, and with exact times.

`python -m tests.logs.test_requests 500` kills the reader so often, for each way of rotation.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.logs.test_kill import Writer
from tests.support.collector import Collector
from tests.support.log_reading import file_collector
from tests.support.paths import RECORDINGS

KILLS = 60
SLOTS = 4


class RequestWriter(Writer):
    """Writes the lines of requests that are processed at the same time, and rotates the file."""

    def __init__(self, path: Path, rotate: str, seed: int) -> None:
        super().__init__(path, rotate, seed)
        self._open: dict[int, tuple[int, int]] = {}  # task and next line, by slot
        self._task = 0
        self.ended_tasks: list[tuple[int, int]] = []

    def _line(self) -> bytes:
        self._number += 1
        slot = self._random.randrange(SLOTS)
        task, step = self._open.get(slot, (-1, 0))
        if step == 0:
            self._task += 1
            task = self._task
        head = f"id  {slot} | task {task} | "
        text = (
            f"slot launch_slot_: {head}processing task, is_child = 0",
            f"slot print_timing: {head}prompt eval time =  10.00 ms / {task % 50 + 1:5} tokens (1 ms per token, 1 tokens per second)",
            f"slot print_timing: {head}       eval time =  20.00 ms / {task % 70 + 1:5} tokens (1 ms per token, 1 tokens per second)",
            f"slot print_timing: {head}      total time =  30.00 ms / 9 tokens",
            f"slot      release: {head}stop processing: n_tokens = 500, truncated = 0",
        )[step]
        if step == 4:
            del self._open[slot]
            self.ended_tasks.append((task, task % 70 + 1))
        else:
            self._open[slot] = task, step + 1
        stamp = f"{self._number // 60000}.{self._number // 1000 % 60:02}.{self._number % 1000:03}.000"
        return f"{stamp} I {text}\n".encode()


def read_with_kills(
    directory: Path, rotate: str, kills: int
) -> tuple[RequestWriter, Counter[tuple[int, int]]]:
    """Kill the reader of a log again and again; return the log's writer, and the requests stored at the end."""
    log, database = directory / "llama.log", directory / "data" / "killed.db"
    log.touch()
    chance = random.Random(kills)
    writer = RequestWriter(log, rotate, seed=kills)
    writer.start()
    try:
        with file_collector(database, log) as collector:
            collector.poll_until(lambda: bool(collector.rows()))
        writer.may_rotate.set()
        for _ in range(kills):
            with subprocess.Popen(
                [sys.executable, "-m", "tests.support.read_logs", str(database), str(log)],
                stdout=subprocess.PIPE,
            ) as reader:
                assert reader.stdout
                assert reader.stdout.readline() == b"ready\n"
                time.sleep(chance.uniform(0, 0.3))
                reader.kill()
            time.sleep(chance.choice([0, 0, 0.2]))
    finally:
        writer.ended.set()
        writer.join()

    def stored() -> list[tuple[int, int]]:
        rows = collector.database.query(
            "SELECT task, generated_tokens FROM requests WHERE outcome = 'finished'"
        )
        return [(row["task"], row["generated_tokens"]) for row in rows]

    with file_collector(database, log) as collector:
        collector.poll_until(lambda: len(stored()) >= len(writer.ended_tasks), 30 + kills)
        return writer, Counter(stored())


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("rotate", ["rename", "copytruncate"])
def test_no_request_is_lost_or_stored_twice_when_the_collector_is_killed_at_any_moment(
    tmp_path: Path, rotate: str
) -> None:
    writer, stored = read_with_kills(tmp_path, rotate, KILLS)
    assert stored == Counter(writer.ended_tasks)
    assert writer.rotations > 10


def rows_of(log: Path, database: Path) -> list[dict[str, Any]]:
    with file_collector(database, log) as collector:
        collector.poll()
        os.utime(log, (time.time() - 60, time.time() - 60))
        collector.poll()
        return collector.database.query("SELECT * FROM requests ORDER BY id")


def test_the_times_of_a_backlog_are_those_of_the_clients(tmp_path: Path) -> None:
    folder = RECORDINGS / "requests" / "b11434-default"
    log = tmp_path / "llama.log"
    log.write_bytes((folder / "server.log").read_bytes())
    os.utime(log, (1_790_000_000, 1_790_000_000))
    rows = [row for row in rows_of(log, tmp_path / "d.db") if row["outcome"] == "finished"]
    assert {row["time_source"] for row in rows} == {"stamp"}
    assert all(0 <= row["ended_at"] - row["started_at"] < 6 for row in rows)
    durations = [1000 * (row["ended_at"] - row["started_at"]) - row["total_ms"] for row in rows]
    assert sorted(durations)[len(durations) // 2] == pytest.approx(0, abs=5)
    assert max(row["ended_at"] for row in rows) <= 1_790_000_000
    assert {row["model"] for row in rows} == {"tiny-a"}


def test_without_stamps_the_times_are_those_of_the_reading_and_say_so(tmp_path: Path) -> None:
    log = tmp_path / "llama.log"
    log.write_bytes((RECORDINGS / "requests" / "b8672" / "server.log").read_bytes())
    rows = rows_of(log, tmp_path / "d.db")
    assert {row["time_source"] for row in rows} == {"arrival"}
    assert len(rows) == 40


def test_a_router_names_the_model_of_each_request(tmp_path: Path) -> None:
    log = tmp_path / "llama.log"
    log.write_bytes((RECORDINGS / "requests" / "b11434-router" / "server.log").read_bytes())
    rows = rows_of(log, tmp_path / "d.db")
    assert {row["model"] for row in rows} == {"gemma-270m", "tiny-a", "tiny-b"}
    assert all(row["port"] for row in rows)


def test_requests_are_found_while_lines_below_a_level_are_not_stored(tmp_path: Path) -> None:
    log = tmp_path / "llama.log"
    log.write_bytes((RECORDINGS / "requests" / "b11434-default" / "server.log").read_bytes())
    with file_collector(tmp_path / "d.db", log, minimum_level="error") as collector:
        collector.poll()
        os.utime(log, (1, 1))
        collector.poll()
        assert len(collector.database.query("SELECT * FROM requests")) == 78
        assert len(collector.rows()) < 10


@pytest.mark.parametrize(("setting", "stored"), [("", None), ("client_addresses = true", "127.0.0.1")])
def test_addresses_of_clients_are_stored_only_if_a_setting_says_so(
    setting: str, stored: str | None, tmp_path: Path
) -> None:
    log = RECORDINGS / "requests" / "b7710" / "server.log"
    with Collector(tmp_path, f'[logs]\nfiles = ["{log}"]\n{setting}') as collector:
        rows = collector.wait_for("SELECT DISTINCT method, client FROM requests WHERE path IS NOT NULL")
    assert rows == [{"method": "POST", "client": stored}]


if __name__ == "__main__":
    for way in ("rename", "copytruncate"):
        with tempfile.TemporaryDirectory() as scratch:
            writer, stored = read_with_kills(Path(scratch), way, int(sys.argv[1]))
            written = Counter(writer.ended_tasks)
            print(
                f"{way}: {sys.argv[1]} kills, {writer.rotations} rotations, {written.total()} requests: "
                f"{(written - stored).total()} lost, {(stored - written).total()} stored twice"
            )
