"""The interface between one vendor's GPUs and the source `gpu`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from collector.schema import SqlValue


@dataclass(frozen=True, slots=True)
class GpuIdentity:
    """What identifies one GPU; None = not known.

    Args:
        vendor: nvidia, amd or intel.
        index: the driver's number of the GPU, from 0. GPUs of two vendors may have the same one, and it may
            change at a boot; `uuid` identifies a GPU.
        uuid: identifier that stays the same.
        name: product name.
        bus_address: PCI address, lower case, such as 0000:01:00.0.
        driver_version: version of the driver.
    """

    vendor: str
    index: int
    uuid: str | None
    name: str | None
    bus_address: str | None
    driver_version: str | None


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU at one moment.

    Args:
        identity: which GPU it is.
        values: measured columns of `gpu_metrics`; a missing one is NULL.
        process_bytes: GPU memory in bytes by process id; None = not known.
    """

    identity: GpuIdentity
    values: Mapping[str, SqlValue]
    process_bytes: Mapping[int, int | None]


class GpuReader(Protocol):
    """The GPUs of one vendor. It may block; one thread at a time calls it."""

    @property
    def vendor(self) -> str:
        """Value of `gpu_metrics.vendor`."""

    @property
    def fault(self) -> str:
        """Which GPUs the last `read` got no answer from, why, and what to do; empty if all answered."""

    def read(self) -> Sequence[GpuReading]:
        """Read every GPU; one that does not answer has no reading and is reported by `fault`.

        Raises:
            SourceAbsent: this machine has no driver or no GPU of this vendor.
            SourceFailed: the driver does not answer, or none of the GPUs does.
        """

    def close(self) -> None:
        """Release the driver's library. A later `read` opens it again."""


def sum_by_process(amounts: Iterable[tuple[int, int | None]]) -> dict[int, int | None]:
    """Return sums by process id; a sum of which one part is not known is not known."""
    sums: dict[int, int | None] = {}
    for pid, amount in amounts:
        before = sums.get(pid, 0)
        sums[pid] = None if before is None or amount is None else before + amount
    return sums
