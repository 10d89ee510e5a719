"""The signals that end or renew the collector, taken one by one."""

import queue
import signal
import threading

from collector.daemon import systemd

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_received: queue.SimpleQueue[int] = queue.SimpleQueue()


def block_signals() -> None:
    """Take the signals, blocked in this thread and in those to come, in a thread of their own.

    For Python's `sigtimedwait` makes up a signal where the process was stopped meanwhile (Ctrl-Z, a
    debugger, SIGSTOP), with whatever lay in memory as its number.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_wait, name="signals", daemon=True).start()


def wait(seconds: float) -> int | None:
    """The signal that has come, or comes within a time; None = none."""
    try:
        return _received.get(timeout=seconds)
    except queue.Empty:
        return None


def is_stop_signal(received: int) -> bool:
    """Whether a signal means to end: SIGHUP does not where systemd sends it."""
    return received != signal.SIGHUP or not systemd.is_supervised()


def _wait() -> None:
    while True:
        _received.put(signal.sigwait(SIGNALS))
