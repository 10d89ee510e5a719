import ctypes
from typing import Any

import pytest

from collector.history.clock_trust import is_clock_synchronized


class Library:
    """libc, whose `adjtimex` returns a state."""

    def __init__(self, state: int) -> None:
        self._state = state

    def adjtimex(self, buffer: Any) -> int:
        assert ctypes.sizeof(buffer) >= 208  # struct timex; libc writes into it
        return self._state


@pytest.mark.parametrize(
    ("state", "synchronized"), [(0, True), (1, True), (4, True), (5, False), (-1, False)]
)
def test_the_kernel_says_whether_the_clock_is_synchronized(
    monkeypatch: pytest.MonkeyPatch,
    state: int,
    *,
    synchronized: bool,
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Library(state))
    assert is_clock_synchronized() is synchronized


@pytest.mark.parametrize("library", [None, object()])
def test_without_that_function_the_clock_counts_as_not_synchronized(
    library: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> object:
        if library is None:
            raise OSError
        return library

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert is_clock_synchronized() is False
