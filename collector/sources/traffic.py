"""Bytes that the machine has read, written, received and sent, each of them counted once.

The kernel counts a byte at every layer: a write to an encrypted logical volume on a RAID counts at the
encryption, the volume, the RAID and the disks; a byte to a container at its veth, the bridge and the network
card. Only the lowest layer is counted.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

_BLOCK_DEVICES, _INTERFACES = Path("/sys/block"), Path("/sys/class/net")
_PAGE_BYTES = 4096
_IN_MEMORY = ("loop", "ram", "zram")
"""Block devices whose bytes are in memory, or in a file of another device."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Traffic:
    """A counter of bytes.

    Args:
        bytes: since the devices were attached.
        devices: names of the devices that are counted; a counter of other devices cannot be compared.
    """

    bytes: float
    devices: tuple[str, ...] = ()


def read_or_none(read: Callable[[], Result]) -> Result | None:
    """Return what a function reads from the kernel; None where this kernel or container does not have it."""
    try:
        return read()
    except (OSError, ValueError, LookupError, NotImplementedError):
        return None


def read_table(name: str) -> dict[str, int]:
    """Return the numbers of a file in /proc whose lines are `NAME VALUE`, such as `meminfo` and `vmstat`.

    Raises:
        OSError: it cannot be read.
    """
    values = {}
    for line in (Path(psutil.PROCFS_PATH) / name).read_text(encoding="ascii", errors="replace").splitlines():
        match line.replace(":", " ").split():
            case [key, value, *_] if value.isdigit():
                values[key] = int(value)
    return values


class TrafficDevices:
    """The devices whose traffic is counted; which these are is looked up when a device comes or goes."""

    def __init__(self) -> None:
        self._disks = _Selection(physical_disks)
        self._interfaces = _Selection(outer_interfaces)

    def counters(self) -> dict[str, Traffic]:
        """Return bytes by the column of their rate; without those that cannot be read."""
        return {
            **(read_or_none(_swap_counters) or {}),
            **(read_or_none(self._disk_counters) or {}),
            **(read_or_none(self._network_counters) or {}),
        }

    def _disk_counters(self) -> dict[str, Traffic]:
        devices = psutil.disk_io_counters(perdisk=True, nowrap=False) or {}
        names = self._disks.of(devices)
        if not names:
            return {}
        return {
            "disk_read_bytes_per_second": Traffic(sum(devices[name].read_bytes for name in names), names),
            "disk_write_bytes_per_second": Traffic(sum(devices[name].write_bytes for name in names), names),
        }

    def _network_counters(self) -> dict[str, Traffic]:
        devices = psutil.net_io_counters(pernic=True, nowrap=False)
        names = self._interfaces.of(devices)
        if not names:
            return {}
        return {
            "network_received_bytes_per_second": Traffic(
                sum(devices[one].bytes_recv for one in names), names
            ),
            "network_sent_bytes_per_second": Traffic(sum(devices[n].bytes_sent for n in names), names),
        }


class _Selection:
    """A choice among the names of devices, made again when the names change."""

    def __init__(self, choose: Callable[[Iterable[str]], list[str]]) -> None:
        self._choose = choose
        self._names: frozenset[str] = frozenset()
        self._chosen: tuple[str, ...] = ()

    def of(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the chosen ones among these names."""
        found = frozenset(names)
        if found != self._names:
            self._names, self._chosen = found, tuple(self._choose(sorted(found)))
        return self._chosen


def physical_disks(names: Iterable[str], block_devices: Path = _BLOCK_DEVICES) -> list[str]:
    """Return the block devices that are no partitions and lie on no other block device.

    Args:
        names: of all devices and partitions.
        block_devices: the kernel's folder of block devices.
    """
    return [
        name
        for name in names
        if (block_devices / name.replace("/", "!")).is_dir()
        and not name.startswith(_IN_MEMORY)
        and not _has_entries(block_devices / name.replace("/", "!") / "slaves")
    ]


def outer_interfaces(names: Iterable[str], interfaces: Path = _INTERFACES) -> list[str]:
    """Return the network interfaces that are hardware; without any, those that lie on no other one.

    A container has no hardware, and one end of a veth is all that it sees.

    Args:
        names: of all interfaces.
        interfaces: the kernel's folder of interfaces.
    """
    external = [name for name in names if name != "lo"]
    hardware = [name for name in external if (interfaces / name / "device").exists()]
    if hardware:
        return hardware
    return [
        name
        for name in external
        if not (interfaces / name / "master").exists() and not list((interfaces / name).glob("lower_*"))
    ]


def _has_entries(directory: Path) -> bool:
    return directory.is_dir() and any(directory.iterdir())


def _swap_counters() -> dict[str, Traffic]:
    """Return the bytes that were swapped in and out since the start of the machine."""
    values = read_table("vmstat")
    return {
        "swap_in_bytes_per_second": Traffic(values["pswpin"] * _PAGE_BYTES),
        "swap_out_bytes_per_second": Traffic(values["pswpout"] * _PAGE_BYTES),
    }
