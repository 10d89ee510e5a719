import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pytest

from collector.daemon.sampler import SNAPSHOT_TIMEOUT_SECONDS, Sampler
from collector.database.buffer import Buffer
from collector.database.documented import METRICS
from collector.errors import SourceAbsent
from collector.schema import SqlValue, Table, Write
from collector.sources.base import Reading, Tick
from collector.sources.llama.metrics import LLAMA_METRICS


class Fake:
    """A source whose reading is defined by the test."""

    tables: tuple[Table, ...] = ()

    def __init__(
        self, name: str, read: Callable[[Tick], Reading[Any]], defaults: Mapping[str, SqlValue]
    ) -> None:
        self.name = name
        self._read = read
        self.defaults = defaults
        self.closed = threading.Event()

    def read(self, tick: Tick) -> Reading[Any]:
        return self._read(tick)

    def close(self) -> None:
        self.closed.set()


def snapshots(buffer: Buffer) -> list[dict[str, SqlValue]]:
    return [
        dict(zip(METRICS.written_columns, row, strict=True))
        for batch in buffer.drain()
        for row in batch.rows
        if batch.statement == METRICS.insert_statement
    ]


def absent(_: Tick) -> Reading[Any]:
    raise SourceAbsent("not here")


def test_one_tick_adds_one_row_with_the_values_of_all_sources() -> None:
    buffer = Buffer()
    sampler = Sampler(
        [
            Fake("a", lambda _: Reading(None, snapshot={"cpu_usage": 1.0}), {"cpu_usage": None}),
            Fake("b", lambda _: Reading(None, snapshot={"disk_usage": 2.0}), {"disk_usage": None}),
        ],
        buffer,
        1,
    )
    before = int(time.time())
    sampler.tick()
    (row,) = snapshots(buffer)
    assert (row["cpu_usage"], row["disk_usage"]) == (1.0, 2.0)
    assert row["timestamp"] in range(before, int(time.time()) + 1)


def test_a_source_that_fails_leaves_the_defaults_of_its_columns() -> None:
    buffer = Buffer()
    sampler = Sampler(
        [Fake("gpu", absent, {"gpu_usage": 0}), Fake("server", absent, {"active_models": None})], buffer, 1
    )
    sampler.tick()
    (row,) = snapshots(buffer)
    assert (row["gpu_usage"], row["active_models"]) == (0, None)


def test_a_stale_value_is_never_repeated() -> None:
    buffer = Buffer()
    readings = iter([Reading(None, snapshot={"cpu_usage": 50.0})])
    sampler = Sampler([Fake("a", lambda _: next(readings), {"cpu_usage": None})], buffer, 1)
    sampler.tick()
    sampler.tick()
    assert [row["cpu_usage"] for row in snapshots(buffer)] == [50.0, None]


def test_a_source_that_hangs_delays_the_others_by_at_most_the_timeout_and_is_reported_as_stuck(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("collector.daemon.sampler.STUCK_SECONDS", 0)
    buffer, release = Buffer(), threading.Event()

    def hang(_: Tick) -> Reading[Any]:
        release.wait()
        return Reading(None, snapshot={"gpu_usage": 5})

    sampler = Sampler(
        [
            Fake("gpu", hang, {"gpu_usage": 0}),
            Fake("host", lambda _: Reading(None, snapshot={"swap_usage": 1}), {"swap_usage": None}),
        ],
        buffer,
        0.01,
    )
    for _ in range(3):
        started = time.monotonic()
        sampler.tick()
        assert time.monotonic() - started < 20 * SNAPSHOT_TIMEOUT_SECONDS
    assert [(row["gpu_usage"], row["swap_usage"]) for row in snapshots(buffer)] == [(0, 1)] * 3
    assert sampler.health[0].state.name == "stuck"
    release.set()
    deadline = time.monotonic() + 5
    while sampler.health[0].state.name != "ok" and time.monotonic() < deadline:
        sampler.tick()
    sampler.tick()
    assert snapshots(buffer)[-1]["gpu_usage"] == 5


def test_a_late_reading_still_adds_its_own_rows_with_the_time_of_its_tick() -> None:
    buffer, release = Buffer(), threading.Event()

    def late(tick: Tick) -> Reading[Any]:
        release.wait()
        return Reading(None, rows=((METRICS, METRICS.row({"timestamp": tick.timestamp, "uptime": 7})),))

    sampler = Sampler([Fake("server", late, {})], buffer, 1)
    sampler.tick()
    (snapshot,) = snapshots(buffer)
    release.set()
    deadline = time.monotonic() + 5
    while not (rows := snapshots(buffer)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (rows[0]["timestamp"], rows[0]["uptime"]) == (snapshot["timestamp"], 7)


def test_a_source_can_use_the_reading_of_an_earlier_one_of_the_same_tick() -> None:
    buffer = Buffer()
    first = Fake("first", lambda tick: Reading(tick.timestamp), {})

    def second(tick: Tick) -> Reading[Any]:
        reading = tick.reading_of(first)
        assert reading
        return Reading(None, snapshot={"uptime": reading.detail})

    Sampler([first, Fake("second", second, {"uptime": None})], buffer, 1).tick()
    (row,) = snapshots(buffer)
    assert row["uptime"] == row["timestamp"]


def test_no_flush_writes_rows_before_the_run_that_they_refer_to() -> None:
    class Flushed(Buffer):
        """Is flushed after each addition; records what every flush contained."""

        flushes: ClassVar[list[list[str]]] = []

        def add(self, *arguments: Any) -> None:
            super().add(*arguments)
            self.flushes.append([batch.statement for batch in self.drain()])

    changes = [Write("INSERT INTO server_runs (id) VALUES (?)", [(1,)])]
    reading = Reading(None, rows=((LLAMA_METRICS, LLAMA_METRICS.row({"run_id": 1})),), changes=changes)
    sampler = Sampler([Fake("a", lambda _: reading, {})], buffer := Flushed(), 1)
    sampler.tick()
    assert buffer.flushes[:2] == [[changes[0].statement], [LLAMA_METRICS.insert_statement]]


def test_quick_sources_are_read_one_after_another_by_one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collector.daemon.sampler.ROTATION_SECONDS", 10.0)
    readers: list[tuple[str, int]] = []

    def note(name: str) -> Callable[[Tick], Reading[Any]]:
        def read(_: Tick) -> Reading[Any]:
            readers.append((name, threading.get_ident()))
            return Reading(None)

        return read

    sampler = Sampler([Fake(name, note(name), {}) for name in "abc"], Buffer(), 1)
    sampler.tick()
    sampler.tick()
    assert [name for name, _ in readers] == list("abcabc")
    assert len({thread for _, thread in readers}) == 1


def test_a_source_is_closed_only_when_its_reading_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collector.daemon.sampler.SNAPSHOT_TIMEOUT_SECONDS", 0.1)
    release, ended = threading.Event(), threading.Event()

    def late(_: Tick) -> Reading[Any]:
        release.wait()
        assert not fakes[0].closed.is_set()
        ended.set()
        return Reading(None)

    fakes = [Fake("late", late, {}), Fake("quick", lambda _: Reading(None), {})]
    sampler = Sampler(fakes, Buffer(), 1)
    sampler.tick()
    sampler.close()
    assert fakes[1].closed.wait(10)
    release.set()
    assert fakes[0].closed.wait(10)
    assert ended.is_set()


def test_closing_ends_every_thread_and_closes_every_source() -> None:
    before = set(threading.enumerate())
    fakes = [Fake(str(number), lambda _: Reading(None), {}) for number in range(3)]
    sampler = Sampler(fakes, Buffer(), 1)
    sampler.tick()
    sampler.close()
    assert all(fake.closed.wait(10) for fake in fakes)
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()
