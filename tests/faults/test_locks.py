"""Other programs lock, move, remove and replace the database while a collector runs.

The full form, with the timeouts of the product: `python -m tests.faults.test_locks`; its arguments say for how
many seconds each lock is held.
"""

import argparse
import os
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from collector.database import Database
from collector.database.buffer import LINE_CAPACITY_ROWS, Buffer, Retention
from collector.database.documented import LOGS, METADATA, METRICS
from collector.database.writer import Writer
from collector.errors import DatabaseReplaced
from collector.schema import Write
from tests.support.collector import WAIT_SECONDS, Collector
from tests.support.damage import damage
from tests.support.impatient import ImpatientCollector
from tests.support.lock_holder import EXCLUSIVE, READER, WRITER, LockHolder

SETTINGS = '[sampling]\ninterval = 1\n[llama_server]\nurl = ""\n[gpu]\nenabled = false\n[models]\nrescan_interval = 0\n'
WRITE_SECONDS, READ_SECONDS = 60, 600
SHORT_WRITE_SECONDS, SHORT_READ_SECONDS = 3, 5
LONG = "collector.database.locks.watch.LONG_SECONDS"
BUFFER_DEFAULTS = "collector.database.buffer.Buffer.__init__.__defaults__"
UNCHANGED = "collector.database.file_watch.UNCHANGED_SECONDS"
STALL_SECONDS = 3
"""Because of a busy machine a collector may not sample for so long."""


def database_settings(directory: Path, more: str) -> str:
    return f'[database]\npath = "{directory}/data/llama-dashboard.db"\nflush_interval = 1\n{more}'


def count(collector: Collector, statement: str) -> int:
    return int(collector.query(f"SELECT count(*) AS n FROM {statement}")[0]["n"])


def messages(collector: Collector, like: str) -> list[str]:
    rows = collector.query(f"SELECT message FROM logs WHERE message LIKE '{like}' ORDER BY id")
    return [str(row["message"]) for row in rows]


def seconds_of(database: Path) -> list[int]:
    with closing(sqlite3.connect(database)) as reader:
        return [second for (second,) in reader.execute("SELECT timestamp FROM metrics ORDER BY id")]


# Locks


def hold(collector: Collector, statements: tuple[str, ...], seconds: float) -> int:
    """Hold a lock for a while, wait for the samples of that time, and return the process that held it."""
    with LockHolder(collector.database, statements) as holder:
        time.sleep(seconds)
    released = int(time.time())
    collector.wait_for(f"SELECT * FROM metrics WHERE timestamp > {released}")
    return holder.pid


def require_every_sample_once(collector: Collector) -> None:
    """Stop the collector, and compare its rows with the number of samples that it reports."""
    assert collector.stop() == 0
    for table, name in (("metrics", "sample"), ("host_metrics", "host")):
        (health,) = collector.query(f"SELECT runs FROM collector_health WHERE name = '{name}'")
        assert count(collector, table) == pytest.approx(health["runs"], abs=1)  # one may be in progress
    seconds = seconds_of(collector.database)
    assert len(seconds) == len(set(seconds))
    assert seconds[-1] - seconds[0] + 1 - len(seconds) <= STALL_SECONDS


def check_write_locks(directory: Path, seconds: float) -> int:
    """Hold two kinds of write locks, one after the other; return the number of rows in the end."""
    with Collector(directory, SETTINGS) as collector:
        collector.wait_for("SELECT * FROM metrics")
        for number, statements in enumerate((WRITER, EXCLUSIVE), 1):
            hold(collector, statements, seconds)
            assert len(messages(collector, "flush: waiting: another program holds a lock%")) == number
            collector.wait_for(
                f"SELECT count(*) FROM logs WHERE message = 'flush: ok' HAVING count(*) = {number}"
            )
        require_every_sample_once(collector)
        return count(collector, "metrics")


def check_reader(directory: Path, seconds: float, constants: Mapping[str, object]) -> int:
    """Hold a reader's transaction for long; return the number of rows in the end."""
    with ImpatientCollector(directory, SETTINGS, constants) as collector:
        collector.wait_for("SELECT * FROM metrics")
        holder = hold(collector, READER, seconds)
        (named,) = messages(collector, "rows have waited for %")
        assert f"locked by process {holder} (python" in named
        assert len(messages(collector, "flush: waiting: another program holds a lock%")) == 1
        assert messages(collector, "%dropped%") == []
        require_every_sample_once(collector)
        return count(collector, "metrics")


@pytest.mark.slow
def test_a_write_lock_delays_the_rows_and_loses_none(tmp_path: Path) -> None:
    assert check_write_locks(tmp_path, SHORT_WRITE_SECONDS) >= SHORT_WRITE_SECONDS


@pytest.mark.slow
def test_a_reader_with_a_long_transaction_is_named_once_and_every_row_is_written_afterwards(
    tmp_path: Path,
) -> None:
    assert check_reader(tmp_path, SHORT_READ_SECONDS, {LONG: 2}) >= SHORT_READ_SECONDS


@pytest.mark.slow
def test_beyond_the_capacity_of_the_buffer_the_oldest_samples_are_dropped_and_counted(tmp_path: Path) -> None:
    capacity = 4
    with ImpatientCollector(
        tmp_path, SETTINGS, {BUFFER_DEFAULTS: (capacity, LINE_CAPACITY_ROWS)}
    ) as collector:
        collector.wait_for("SELECT * FROM metrics")
        hold(collector, READER, SHORT_READ_SECONDS)
        (logged,) = messages(collector, "%the oldest samples were dropped%")
        assert collector.stop() == 0
    dropped = int(logged.rpartition("rows=")[2])
    read = collector.query("SELECT sum(runs) AS runs FROM collector_health WHERE name IN ('sample', 'host')")
    kept = count(collector, "metrics") + count(collector, "host_metrics")
    assert kept + dropped == pytest.approx(read[0]["runs"], abs=2)
    assert dropped >= SHORT_READ_SECONDS - STALL_SECONDS


# The file at the path is no longer the database: the writer


FINGERPRINT = "SELECT value FROM metadata WHERE key = 'fingerprint'"


@pytest.fixture
def buffer() -> Buffer:
    return Buffer()


@pytest.fixture
def writer(database: Database, buffer: Buffer) -> Writer:
    numbers = iter(range(10**6))

    def final_rows() -> Write:
        return Write("INSERT OR REPLACE INTO metadata VALUES ('fingerprint', ?, 1)", [(next(numbers),)])

    writer = Writer(database, buffer, final_rows, FINGERPRINT)
    writer.flush(force=True)
    return writer


def sample(buffer: Buffer, second: int) -> None:
    buffer.add([METRICS.insert(METRICS.row({"timestamp": second}))], Retention.DROPPABLE)


def another(path: Path) -> Path:
    """Create another database of the same kind."""
    with Database(path):
        return path


def remove(path: Path) -> None:
    path.unlink()


def remove_directory(path: Path) -> None:
    shutil.rmtree(path.parent)


def move_away(path: Path) -> None:
    path.rename(path.with_name("moved.db"))


def move_another_over(path: Path) -> None:
    another(path.with_name("another.db")).rename(path)


def copy_another_over(path: Path) -> None:
    shutil.copy(another(path.with_name("another.db")), path)


def empty_it(path: Path) -> None:
    os.truncate(path, 0)


def overwrite(path: Path) -> None:
    path.write_text("my diary " * 1000)


@pytest.mark.parametrize(
    "harm",
    [
        remove,
        remove_directory,
        move_away,
        move_another_over,
        copy_another_over,
        empty_it,
        overwrite,
    ],
)
def test_a_change_of_the_file_is_detected_and_nothing_is_written_into_another_one(
    database: Database, buffer: Buffer, writer: Writer, harm: Callable[[Path], None]
) -> None:
    harm(database.path)
    before = database.path.read_bytes() if database.path.exists() else None
    sample(buffer, 7)
    for _ in range(2):
        with pytest.raises(DatabaseReplaced):
            writer.flush()
    assert (database.path.read_bytes() if database.path.exists() else None) == before
    assert writer.replacement
    assert [batch.rows for batch in writer.hand_over()] == [[METRICS.row({"timestamp": 7})]]


def test_a_database_in_which_another_program_has_written_is_still_the_same_database(
    database: Database, buffer: Buffer, writer: Writer
) -> None:
    with closing(sqlite3.connect(database.path, isolation_level=None)) as other:
        other.execute("UPDATE metadata SET updated_at = 9")
        other.execute("CREATE INDEX theirs ON logs (message)")
        other.execute("VACUUM")
    sample(buffer, 7)
    assert writer.flush() == 1


def test_a_file_that_comes_back_stays_in_use(database: Database, buffer: Buffer, writer: Writer) -> None:
    sample(buffer, 7)
    move_away(database.path)
    with pytest.raises(DatabaseReplaced, match="is gone"):
        writer.flush()
    database.path.with_name("moved.db").rename(database.path)
    assert writer.flush() == 1
    assert not writer.replacement
    assert seconds_of(database.path) == [7]


class TestMovedInTheMiddleOfACommit:
    @pytest.fixture(autouse=True)
    def _unconfirmed(self, database: Database, buffer: Buffer, writer: Writer) -> None:
        def move(value: str) -> str:
            move_away(database.path)
            return value

        with database.transaction() as connection:
            connection.create_function("move", 1, move)
        sample(buffer, 7)
        buffer.add([Write("INSERT INTO metadata VALUES ('x', move(?), 1)", (("1",),))], Retention.KEPT)
        with pytest.raises(DatabaseReplaced, match="is gone"):
            writer.flush()
        assert seconds_of(database.path.with_name("moved.db")) == [7]

    def test_the_rows_are_handed_over_to_the_next_database_as_well(self, writer: Writer) -> None:
        assert writer.hand_over()[0].rows == [METRICS.row({"timestamp": 7})]
        assert writer.hand_over() == []

    def test_the_rows_are_not_written_twice_if_the_file_comes_back(
        self, database: Database, buffer: Buffer, writer: Writer
    ) -> None:
        database.path.with_name("moved.db").rename(database.path)
        sample(buffer, 8)
        writer.flush()
        assert seconds_of(database.path) == [7, 8]
        assert writer.hand_over() == []


def test_samples_that_were_dropped_are_logged_when_the_others_are_handed_over(
    database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    buffer = Buffer(sample_capacity=1)
    writer = Writer(database, buffer)
    remove(database.path)
    for second in range(3):
        sample(buffer, second)
        with pytest.raises(DatabaseReplaced):
            writer.flush()
    assert [batch.rows for batch in writer.hand_over()] == [[METRICS.row({"timestamp": 2})]]
    assert "oldest samples were dropped" in capsys.readouterr().out


def test_log_lines_are_not_handed_over_because_they_are_read_again_from_the_position_in_the_next_database() -> (
    None
):
    buffer = Buffer()
    buffer.add(
        [LOGS.insert(*[("info", "from a file", "llama-server", 1)]), METADATA.replace(("position", "9", 8))],
        Retention.REREADABLE,
    )
    buffer.add([LOGS.insert(*[("error", "our own", "collector", 2)])], Retention.KEPT)
    assert [batch.rows for batch in buffer.drain_transferable()] == [[("error", "our own", "collector", 2)]]
    assert buffer.waiting == 0


# The file at the path is no longer the database: the collector


class Server:
    """Writes numbered lines into a log file."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.settings = f'[logs]\nfiles = ["{log}"]\n'
        self._written = 0
        self.write(100)

    def write(self, lines: int) -> None:
        with self.log.open("a") as file:
            for _ in range(lines):
                self._written += 1
                file.write(f"0.00.000.000 I the server says {self._written}\n")

    def wait_until_all_is_read(self, collector: Collector) -> None:
        collector.wait_for(f"SELECT * FROM logs WHERE message LIKE '%the server says {self._written}'")

    def require_each_line_once(self, collector: Collector) -> None:
        numbers = [int(text.split()[-1]) for text in messages(collector, "%the server says %")]
        assert numbers == list(range(1, self._written + 1))


def switched(collector: Collector) -> str:
    """Wait until it samples into the file that is at its path now; return what it logged about the old one."""
    collector.wait_for("SELECT * FROM logs WHERE message LIKE 'switched to what is now at %'")
    collector.wait_for("SELECT * FROM collector_health WHERE name = 'sample' AND runs >= 2")
    (logged,) = messages(collector, "flush: failed: %")
    assert len(messages(collector, "switched to what is now at %")) == 1
    return logged


def require_no_gap(seconds: Iterable[int], *, changes: int = 1) -> None:
    """Each new daemon samples at once, possibly in the same second as the last one."""
    seconds = list(seconds)
    assert seconds == sorted(seconds)
    assert max(seconds) - min(seconds) + 1 - len(set(seconds)) <= STALL_SECONDS
    assert len(seconds) - len(set(seconds)) <= changes


@pytest.mark.slow
def test_a_database_that_is_moved_away_is_followed_by_a_new_one_without_a_gap(tmp_path: Path) -> None:
    server = Server(tmp_path / "server.log")
    with Collector(tmp_path, SETTINGS + server.settings) as collector:
        collector.wait_for("SELECT * FROM metrics WHERE id >= 2")
        server.wait_until_all_is_read(collector)
        moved = collector.database.rename(collector.database.with_name("moved.db"))
        server.write(50)
        logged = switched(collector)
        assert f"{collector.database} is gone" in logged
        server.wait_until_all_is_read(collector)
        assert collector.stop() == 0
        server.require_each_line_once(collector)
    assert collector.output.count("is gone") == 1
    assert collector.query("SELECT id, stopped_cleanly FROM collector_runs") == [
        {"id": 1, "stopped_cleanly": 1}
    ]
    with closing(sqlite3.connect(moved)) as reader:
        assert reader.execute("SELECT stopped_at FROM collector_runs").fetchall() == [(None,)]
    old, new = seconds_of(moved), seconds_of(collector.database)
    assert new[0] - old[-1] <= STALL_SECONDS  # the rows that waited are in the new one
    require_no_gap(old + new)


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[ImpatientCollector]:
    """A collector that soon switches to what is at its path; it is not started yet."""
    created = ImpatientCollector(tmp_path, SETTINGS, {UNCHANGED: 1})
    try:
        yield created
    finally:
        created.__exit__(None, None, None)


@pytest.mark.slow
def test_a_directory_that_is_removed_is_created_again(collector: ImpatientCollector) -> None:
    collector.start().wait_for("SELECT * FROM metrics WHERE id >= 2")
    shutil.rmtree(collector.database.parent)
    removed = int(time.time())
    switched(collector)
    assert collector.call("run").returncode == 1  # the lock in that directory is held again
    assert collector.stop() == 0
    seconds = seconds_of(collector.database)
    assert seconds[0] - removed <= STALL_SECONDS
    require_no_gap(seconds)


@pytest.mark.slow
@pytest.mark.parametrize("put", [shutil.move, shutil.copy], ids=["moved", "copied"])
def test_a_backup_that_is_put_there_by_hand_receives_every_line_and_sample(
    tmp_path: Path, put: Callable[[Path, Path], object]
) -> None:
    server = Server(tmp_path / "server.log")
    with ImpatientCollector(tmp_path, SETTINGS + server.settings, {UNCHANGED: 1}) as collector:
        server.wait_until_all_is_read(collector)
        assert collector.call("backup").returncode == 0
        (backup,) = collector.database.parent.glob("backup/*.db")
        in_backup = seconds_of(backup)
        server.write(100)
        server.wait_until_all_is_read(collector)
        server.write(100)
        put(backup, collector.database)
        replaced = int(time.time())
        switched(collector)
        server.write(1)
        server.wait_until_all_is_read(collector)
        assert collector.stop() == 0
        server.require_each_line_once(collector)
    new = seconds_of(collector.database)[len(in_backup) :]
    assert new[0] - replaced <= STALL_SECONDS
    require_no_gap(new)


@pytest.mark.slow
def test_a_file_that_is_no_database_is_refused_with_the_reason_and_the_lost_rows_are_logged(
    collector: ImpatientCollector,
) -> None:
    collector.start().wait_for("SELECT * FROM metrics")
    diary = collector.database.with_name("diary")
    diary.write_text("my diary " * 1000)
    diary.rename(collector.database)
    assert collector.process
    _, errors = collector.process.communicate(timeout=WAIT_SECONDS)
    assert collector.process.returncode == 1
    assert f"another file is at {collector.database}" in errors
    assert "the last rows could not be written and are lost" in errors
    assert "no SQLite database" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert collector.database.read_text().startswith("my diary")


def damaged_copy(collector: Collector) -> Path:
    copy = collector.database.with_name("copy.db")
    shutil.copy(next(collector.database.parent.glob("backup/*.db")), copy)
    damage(copy)
    return copy


@pytest.mark.slow
@pytest.mark.parametrize(
    ("put", "on_damage"), [(shutil.move, "stop"), (shutil.copy, "fresh")], ids=["stop", "fresh"]
)
def test_a_damaged_file_that_is_put_there_is_treated_as_the_settings_say(
    tmp_path: Path, put: Callable[[Path, Path], object], on_damage: str
) -> None:
    settings = database_settings(tmp_path, f'on_damage = "{on_damage}"\n{SETTINGS}')
    with ImpatientCollector(tmp_path, settings, {UNCHANGED: 1}) as collector:
        collector.wait_for("SELECT * FROM metrics")
        assert collector.call("backup").returncode == 0
        copy = damaged_copy(collector)
        broken = copy.read_bytes()
        put(copy, collector.database)
        if on_damage == "stop":
            assert collector.process
            _, errors = collector.process.communicate(timeout=WAIT_SECONDS)
            assert collector.process.returncode == 1
            assert "restore --latest" in errors.splitlines()[-1]
            assert collector.database.read_bytes() == broken
        else:
            replaced = int(time.time())
            (aside,) = wait_for_files(collector.database.parent, "*.damaged-*")
            collector.wait_for("SELECT * FROM logs WHERE message LIKE '%set aside%'")
            collector.wait_for("SELECT * FROM metrics WHERE id >= 4")
            assert aside.read_bytes() == broken
            assert seconds_of(collector.database)[0] - replaced <= STALL_SECONDS


def wait_for_files(directory: Path, pattern: str) -> list[Path]:
    deadline = time.monotonic() + WAIT_SECONDS
    while not (found := list(directory.glob(pattern))):
        assert time.monotonic() < deadline, pattern
        time.sleep(0.05)
    return found


@pytest.mark.slow
def test_a_database_that_comes_back_at_once_stays_in_use(tmp_path: Path) -> None:
    with Collector(tmp_path, SETTINGS) as collector:
        collector.wait_for("SELECT * FROM metrics WHERE id >= 2")
        moved = collector.database.rename(collector.database.with_name("moved.db"))
        time.sleep(2.5)  # there is a flush in this time, and the collector waits for longer
        moved.rename(collector.database)
        collector.wait_for("SELECT * FROM logs WHERE message = 'flush: ok'")
        assert messages(collector, "went over%") == []
        require_every_sample_once(collector)


@pytest.mark.slow
def test_a_signal_meanwhile_stops_it_and_the_lost_rows_are_logged(tmp_path: Path) -> None:
    with Collector(tmp_path, SETTINGS) as collector:
        collector.wait_for("SELECT * FROM metrics WHERE id >= 2")
        collector.database.unlink()
        time.sleep(2)
        assert collector.stop() == 0
    assert "the last rows could not be written and are lost" in collector.output
    assert not collector.database.exists()


@pytest.mark.slow
def test_if_no_file_can_be_created_sampling_continues_until_it_can(collector: ImpatientCollector) -> None:
    directory = collector.database.parent
    collector.start().wait_for("SELECT * FROM metrics WHERE id >= 2")
    shutil.rmtree(directory)
    directory.touch()  # a file where the directory was
    removed = int(time.time())
    time.sleep(3)
    directory.unlink()
    logged = switched(collector)
    assert "is gone" in logged
    assert len(messages(collector, "samples wait in memory: cannot use or create%")) == 1
    assert collector.stop() == 0
    seconds = seconds_of(collector.database)
    assert seconds[0] - removed <= STALL_SECONDS
    require_no_gap(seconds)


def main() -> None:
    """Hold both kinds of locks for as long as the documentation promises, with the constants of the product."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--write-seconds", type=float, default=WRITE_SECONDS)
    parser.add_argument("--read-seconds", type=float, default=READ_SECONDS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        rows = check_write_locks(Path(first), options.write_seconds)
        print(f"two write locks of {options.write_seconds:.0f} s each: {rows} samples, each there once")
        sys.stdout.flush()
        rows = check_reader(Path(second), options.read_seconds, {})
        print(f"a reader's transaction of {options.read_seconds:.0f} s: {rows} samples, each there once")


if __name__ == "__main__":
    main()
