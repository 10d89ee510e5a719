"""What reading may cost: time and memory in proportion to the length of the input."""

import time
import tracemalloc
import zlib
from collections.abc import Callable
from typing import TypeVar

SECONDS, SECONDS_A_BYTE = 0.5, 20e-6
"""Ten times what the slowest readers take under instrumentation: what grows with the input stays below."""

MEMORY_BYTES, MEMORY_BYTES_A_BYTE = 2**20, 500
"""A record made of a line of one character takes 250 bytes."""

STRETCHED_BYTES = 16 * 1024
STRETCHED_OF = 128
"""One input of so many is stretched: that costs about as much as all the others."""

_LONGEST_PIECE_BYTES = 12
_ATTEMPTS = 3

Value = TypeVar("Value")


def timed(attempt: Callable[[], Value], size_bytes: int) -> Value:
    """What the attempt gives, within the processor time for an input of that size.

    Raises:
        AssertionError: it took longer, several times: no other program is to blame.
    """
    bound = SECONDS + SECONDS_A_BYTE * size_bytes
    for _ in range(_ATTEMPTS):
        started = time.thread_time()
        value = attempt()
        if time.thread_time() - started <= bound:
            return value
    raise AssertionError(f"{size_bytes:,} bytes take more than {bound:.2f} s to read")


def hold_memory(attempt: Callable[[], object], size_bytes: int) -> None:
    """Hold what an attempt allocates against the bound.

    Raises:
        AssertionError: it allocated more.
    """
    tracemalloc.start()
    try:
        attempt()
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    bound = MEMORY_BYTES + MEMORY_BYTES_A_BYTE * size_bytes
    assert peak_bytes <= bound, f"{size_bytes:,} bytes take {peak_bytes:,} bytes to read"


def stretched(data: bytes) -> bytes | None:
    """Some inputs with one piece of them repeated many times: that shows what is not linear.

    Which input, and which piece of it, follows from the input, so that a fault can be seen again.
    """
    choice, rest = divmod(zlib.crc32(data), STRETCHED_OF)
    return stretched_at(data, choice) if rest == 0 and data else None


def stretched_at(data: bytes, choice: int) -> bytes:
    """The input with the piece repeated that the number stands for."""
    choice, start = divmod(choice, len(data))
    piece = data[start : start + 1 + choice % _LONGEST_PIECE_BYTES]
    return data[:start] + piece * (STRETCHED_BYTES // len(piece)) + data[start + len(piece) :]
