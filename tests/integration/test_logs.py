"""llama-server's output in the logs table, through the whole collector."""

import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.collector import Collector
from tests.support.llama_server import LlamaServer

NO_SERVER = '[llama_server]\nurl = ""\n[gpu]\nenabled = false\n'


def settings_for(log: Path) -> str:
    return f'[sampling]\ninterval = 1\n{NO_SERVER}[logs]\nfiles = ["{log}"]\n'


def test_the_output_of_a_real_server_is_stored_while_it_runs(tmp_path: Path, tiny_model: Path) -> None:
    log = tmp_path / "llama-server.log"
    with Collector(tmp_path, settings_for(log)) as collector:
        collector.wait_for("SELECT * FROM collector_health WHERE name = 'log_files' AND state = 'absent'")
        with LlamaServer(tiny_model, log=log) as server:
            server.complete()
            (row,) = collector.wait_for("SELECT * FROM logs WHERE message LIKE '%stop processing%'")
        assert (row["source"], row["level"]) == ("llama-server", "info")
        assert row["message"].startswith("slot ")
        assert abs(row["timestamp"] - time.time()) < 10
        assert collector.stop() == 0
    assert collector.query("SELECT * FROM logs WHERE source = 'llama-server' AND message LIKE '%\x1b%'") == []


def test_lines_written_while_the_collector_was_down_are_stored_once(tmp_path: Path) -> None:
    log = tmp_path / "llama-server.log"
    log.write_text("0.00.001.000 I srv one\n")
    with Collector(tmp_path, settings_for(log)) as collector:
        collector.wait_for("SELECT * FROM logs WHERE message = 'srv one'")
        collector.stop(signal.SIGKILL)
    with log.open("a") as file:
        file.write("0.00.002.000 W srv two\n0.00.003.000 E srv three\n")
    with Collector(tmp_path, settings_for(log)) as collector:
        collector.wait_for("SELECT * FROM logs WHERE message = 'srv three' AND level = 'error'")
        assert collector.stop() == 0
    rows = collector.query("SELECT message FROM logs WHERE source = 'llama-server' ORDER BY id")
    assert [row["message"] for row in rows] == ["srv one", "srv two", "srv three"]


def test_without_logs_there_is_no_thread_for_them(tmp_path: Path) -> None:
    with Collector(tmp_path, NO_SERVER) as collector:
        collector.wait_for("SELECT * FROM metrics")
        assert collector.process
        threads = [
            (thread / "comm").read_text() for thread in Path(f"/proc/{collector.process.pid}/task").iterdir()
        ]
        assert len(threads) < 10
        assert collector.query("SELECT * FROM collector_health WHERE name IN ('log_files', 'journal')") == []


FLOOD = """
import sys, time
path, rate, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
number = 0
with open(path, "a", buffering=1 << 20) as log:
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        for _ in range(rate // 20):
            log.write(f"{number // 60000}.{number // 1000 % 60:02}.{number % 1000:03}.000 I slot number {number}\\n")
            number += 1
        log.flush()
        time.sleep(max(0, started + number / rate - time.monotonic()))
print(number)
"""


def resident_megabytes(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_flood_of_lines_delays_no_sample_needs_little_memory_and_loses_no_line(tmp_path: Path) -> None:
    log, seconds = tmp_path / "flood.log", 60
    log.touch()
    with Collector(tmp_path, f"{settings_for(log)}[retention]\nlogs_max_rows = 0\n") as collector:
        collector.wait_for("SELECT * FROM metrics WHERE id >= 3")
        assert collector.process
        idle = resident_megabytes(collector.process.pid)
        writer = subprocess.Popen(
            [sys.executable, "-c", FLOOD, str(log), "50000", str(seconds)], stdout=subprocess.PIPE, text=True
        )
        most = idle
        while writer.poll() is None:
            most = max(most, resident_megabytes(collector.process.pid))
            time.sleep(0.2)
        assert writer.stdout
        written = int(writer.stdout.read())
        writer.stdout.close()
        collector.wait_for(f"SELECT * FROM logs WHERE message = 'slot number {written - 1}'", seconds=300)
        most = max(most, resident_megabytes(collector.process.pid))
        assert collector.stop() == 0
    print(f"{written} lines written, memory {idle:.1f} MB idle, {most:.1f} MB at most")
    assert written > 10_000 * seconds
    assert collector.query(
        "SELECT count(*) AS n, count(DISTINCT message) AS d FROM logs WHERE message LIKE 'slot %'"
    ) == [{"n": written, "d": written}]
    assert most - idle < 30
    timestamps = [row["timestamp"] for row in collector.query("SELECT timestamp FROM metrics ORDER BY id")]
    assert max(later - earlier for earlier, later in pairwise(timestamps)) <= 2
