"""Numbers of the host and of the views: what cannot be read is NULL, each byte counts once, days are whole."""

import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import psutil
import pytest

from collector.catalog import open_database
from collector.database import Database
from collector.database.documented import METRICS
from collector.sources.base import Tick
from collector.sources.disk import DiskSource
from collector.sources.host import HostSource
from collector.sources.llama.metrics import LLAMA_METRICS, TokenSpeed
from collector.sources.traffic import TrafficDevices, outer_interfaces, physical_disks
from collector.text import format_age


@pytest.mark.parametrize(
    ("tokens", "seconds", "speed"),
    [
        pytest.param(1, 0.000001, None, id="a request of one token has no speed"),
        pytest.param(2, 0.1, 10, id="the seconds leave out the first token"),
        pytest.param(20, 1.0, 19, id="as llama.cpp divides"),
        pytest.param(50, 0.00005, None, id="many requests of one token each"),
        pytest.param(0, 0.0, None, id="no request"),
    ],
)
def test_the_speed_of_generation(tokens: float, seconds: float, speed: float | None) -> None:
    assert TokenSpeed(untimed_tokens=1, from_zero=True).update(tokens, seconds) == (
        None if speed is None else pytest.approx(speed)
    )


def folder(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).mkdir(parents=True)
    return root


DISKS = {
    "a disk with partitions": (["sda", "sda1", "sda2"], ["sda/slaves"], ["sda"]),
    "LVM on LUKS": (["sda", "dm-0", "dm-1"], ["sda/slaves", "dm-0/slaves/sda1", "dm-1/slaves/dm-0"], ["sda"]),
    "a RAID": (["sda", "sdb", "md0"], ["sda/slaves", "sdb/slaves", "md0/slaves/sda", "md0/slaves/sdb"], ["sda", "sdb"]),
    "loop devices": (["nvme0n1", "loop0", "loop7"], ["nvme0n1/slaves", "loop0/slaves", "loop7/slaves"], ["nvme0n1"]),
    "memory": (["vda", "zram0", "ram0"], ["vda/slaves", "zram0/slaves", "ram0/slaves"], ["vda"]),
    "a name with a slash": (["cciss/c0d0"], ["cciss!c0d0/slaves"], ["cciss/c0d0"]),
    "no folder of block devices": (["sda"], [], []),
}  # fmt: skip


@pytest.mark.parametrize(("names", "folders", "counted"), DISKS.values(), ids=DISKS)
def test_each_byte_of_a_disk_counts_once(
    names: list[str], folders: list[str], counted: list[str], tmp_path: Path
) -> None:
    assert physical_disks(names, folder(tmp_path, *folders)) == counted


INTERFACES = {
    "a bridge and its veth": (["docker0", "eth0", "lo", "veth1"], ["docker0/bridge", "eth0/device", "lo", "veth1/master"], ["eth0"]),
    "a bond with a VLAN": (["bond0", "eth0", "eth1", "vlan5"], ["bond0/lower_eth0", "eth0/device", "eth1/device", "vlan5/lower_bond0"], ["eth0", "eth1"]),
    "a VPN": (["wg0", "wlan0"], ["wg0", "wlan0/device"], ["wlan0"]),
    "a container": (["eth0", "lo"], ["eth0", "lo"], ["eth0"]),
    "a container with a bridge": (["br0", "eth0", "veth3"], ["br0/lower_veth3", "eth0", "veth3/master"], ["eth0"]),
    "only loopback": (["lo"], ["lo"], []),
}  # fmt: skip


@pytest.mark.parametrize(("names", "folders", "counted"), INTERFACES.values(), ids=INTERFACES)
def test_each_byte_of_the_network_counts_once(
    names: list[str], folders: list[str], counted: list[str], tmp_path: Path
) -> None:
    assert outer_interfaces(names, folder(tmp_path, *folders)) == counted


def host_row(source: HostSource) -> dict[str, object]:
    (table, row), *_ = source.read(Tick(int(time.time()))).rows
    return dict(zip((column.name for column in table.columns if column.name != "id"), row, strict=True))


@pytest.fixture
def procfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files in /proc that the host's values come from."""
    for name in ("stat", "meminfo", "vmstat", "diskstats", "loadavg", "uptime", "net/dev"):
        target = tmp_path / "proc" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((Path("/proc") / name).read_bytes())
    (tmp_path / "proc" / "self").mkdir()
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path / "proc"))
    return tmp_path / "proc"


@pytest.mark.parametrize(
    ("missing", "unknown"),
    [
        ("vmstat", {"swap_in_bytes_per_second", "swap_out_bytes_per_second"}),
        ("net/dev", {"network_received_bytes_per_second", "network_sent_bytes_per_second"}),
        ("stat", {"cpu_usage"}),
    ],
)
def test_only_the_columns_of_what_is_missing_are_null(missing: str, unknown: set[str], procfs: Path) -> None:
    complete = HostSource(DiskSource(Path("/")))
    host_row(complete)
    known = {name for name, value in host_row(complete).items() if value is not None}
    (procfs / missing).unlink()
    source = HostSource(DiskSource(Path("/")))
    host_row(source)
    values = host_row(source)
    assert {name for name in known if values[name] is None} <= unknown
    assert all(values[name] is None for name in unknown)
    assert values["memory_usage"] is not None


@pytest.mark.parametrize(
    "error", [NotImplementedError("no diskstats"), PermissionError(13, "closed")], ids=str
)
def test_disks_whose_counters_cannot_be_read_cost_only_their_columns(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(psutil, "disk_io_counters", fail)
    source = HostSource(DiskSource(Path("/")))
    host_row(source)
    values = host_row(source)
    assert values["disk_read_bytes_per_second"] is values["disk_write_bytes_per_second"] is None
    assert values["memory_usage"] is not None
    assert values["swap_in_bytes_per_second"] is not None


def test_a_sensor_that_reads_0_once_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([50.0, 0.0, 51.0])

    class Sensor:
        def __init__(self) -> None:
            self.current = next(readings)

    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: {"k10temp": [Sensor()]})
    source = HostSource(DiskSource(Path("/")))
    assert [host_row(source)["cpu_temperature_celsius"] for _ in range(3)] == [50.0, None, 51.0]


def test_a_sensor_whose_driver_comes_later_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("collector.sources.host.time.monotonic", lambda: now[0])
    monkeypatch.setattr(psutil, "sensors_temperatures", dict)
    source = HostSource(DiskSource(Path("/")))
    assert host_row(source)["cpu_temperature_celsius"] is None
    sensor = type("Sensor", (), {"current": 40.0})
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: {"coretemp": [sensor]})
    now[0] += 61
    assert host_row(source)["cpu_temperature_celsius"] == 40.0


def test_a_disk_that_is_attached_makes_no_leap(monkeypatch: pytest.MonkeyPatch) -> None:
    def disks(*names: str) -> dict[str, object]:
        return {name: type("Disk", (), {"read_bytes": 10**12, "write_bytes": 0}) for name in names}

    monkeypatch.setattr("collector.sources.traffic.physical_disks", list)
    devices = TrafficDevices()
    monkeypatch.setattr(psutil, "disk_io_counters", lambda **_: disks("sda"))
    before = devices.counters()["disk_read_bytes_per_second"]
    monkeypatch.setattr(psutil, "disk_io_counters", lambda **_: disks("sda", "sdb"))
    assert devices.counters()["disk_read_bytes_per_second"].devices != before.devices


# Days


ZONES = (
    "Africa/Cairo", "Asia/Beirut", "America/Santiago", "America/Havana", "America/Asuncion", "Asia/Kolkata",
    "Asia/Kathmandu", "Pacific/Chatham", "Pacific/Apia", "Europe/Berlin", "UTC", "Australia/Lord_Howe",
)  # fmt: skip
YEARS = {"Pacific/Apia": 2011, "America/Asuncion": 2023}


@pytest.fixture(params=ZONES)
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with open_database(tmp_path / "llama.db") as opened:
        yield opened


@pytest.mark.timeout(60)
def test_the_tokens_of_a_day_are_those_of_its_hours(zone: str, database: Database) -> None:
    begin = datetime(YEARS.get(zone, 2025), 1, 1, tzinfo=ZoneInfo(zone)) - timedelta(days=3)
    first = int(begin.timestamp())
    rows = [
        LLAMA_METRICS.row({"timestamp": first + number * 1800, "model": "m", "run_id": 1, "tokens_predicted_total": number, "counted_from_zero": int(number == 0)})
        for number in range(372 * 48)
    ]  # fmt: skip
    with database.transaction() as connection:
        connection.executemany(LLAMA_METRICS.insert_statement, rows)
    expected: dict[str, int] = {}
    for number in range(1, len(rows)):
        day = datetime.fromtimestamp(first + number * 1800, ZoneInfo(zone)).date().isoformat()
        expected[day] = expected.get(day, 0) + 1
    found = database.query(
        "SELECT date(timestamp, 'unixepoch', 'localtime') AS day, generated_tokens FROM tokens_by_day ORDER BY timestamp"
    )
    assert {row["day"]: row["generated_tokens"] for row in found if row["generated_tokens"]} == expected


# Ages


def test_a_sample_of_the_future_has_no_age_and_is_told(database: Database) -> None:
    future = int(time.time()) + 10 * 86_400
    with database.transaction() as connection:
        connection.execute(METRICS.insert_statement, METRICS.row({"timestamp": future}))
    assert database.query("SELECT age_seconds FROM now") == [{"age_seconds": None}]
    assert format_age(future) == "in the future by 10 d: check the clock"
