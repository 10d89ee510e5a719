"""Bounds for what a reader may use: time and memory in proportion to the length of the input."""

import time
import tracemalloc
import zlib
from collections.abc import Callable
from typing import TypeVar

SECONDS, SECONDS_A_BYTE = 0.5, 20e-6
"""Ten times what the slowest readers use under instrumentation; a reader of linear time stays below."""

MEMORY_BYTES, MEMORY_BYTES_A_BYTE = 2**20, 500
"""The record of a line of one character has 250 bytes."""

STRETCHED_BYTES = 16 * 1024
STRETCHED_OF = 128
"""One input of this many is stretched, which costs about as much as all the others."""

_LONGEST_PIECE_BYTES = 12
_ATTEMPTS = 3

Value = TypeVar("Value")


def timed(attempt: Callable[[], Value], size_bytes: int) -> Value:
    """Return the result of an attempt, which must stay within the processor time for its input.

    Raises:
        AssertionError: it took longer several times in a row, so that it was not another program.
    """
    bound = SECONDS + SECONDS_A_BYTE * size_bytes
    for _ in range(_ATTEMPTS):
        started = time.thread_time()
        value = attempt()
        if time.thread_time() - started <= bound:
            return value
    raise AssertionError(f"{size_bytes:,} bytes take more than {bound:.2f} s to read")


def check_memory(attempt: Callable[[], object], size_bytes: int) -> None:
    """Check that an attempt allocates no more memory than its input allows.

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
    """Return some inputs with one piece repeated many times, which shows what is not linear; None for the rest.

    The input alone decides which piece, so that a fault can be reproduced.
    """
    choice, rest = divmod(zlib.crc32(data), STRETCHED_OF)
    return stretched_at(data, choice) if rest == 0 and data else None


def stretched_at(data: bytes, choice: int) -> bytes:
    """Return the input with one piece repeated; the number selects the piece."""
    choice, start = divmod(choice, len(data))
    piece = data[start : start + 1 + choice % _LONGEST_PIECE_BYTES]
    return data[:start] + piece * (STRETCHED_BYTES // len(piece)) + data[start + len(piece) :]
