"""The signals that stop or reload the collector, received one by one."""

import queue
import signal
import threading

from collector.daemon import systemd

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_received: queue.SimpleQueue[int] = queue.SimpleQueue()


def block_signals() -> None:
    """Block the signals in this thread and in those it starts, and receive them in a thread of their own.

    The thread calls `sigwait`. Python's `sigtimedwait` would need no thread, but if the process was stopped
    meanwhile (Ctrl-Z, a debugger, SIGSTOP) it returns a signal that nobody sent, with a random number.

    A signal that is ignored stays ignored: `nohup` starts a program like that, so that it outlives the
    terminal. SIGTTOU, which stops a background process that prints to some terminals, is ignored as well.
    """
    received = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]

    def receive() -> None:
        while True:
            _received.put(signal.sigwait(received))

    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, received)
    threading.Thread(target=receive, name="signals", daemon=True).start()


def wait_for_signal(seconds: float) -> int | None:
    """Return the next signal, or None if none arrives in this time."""
    try:
        return _received.get(timeout=seconds)
    except queue.Empty:
        return None


def is_stop_signal(received: int) -> bool:
    """Return whether a signal asks the collector to stop.

    SIGHUP does so if a terminal was closed; systemd sends it to reload the settings.
    """
    return received != signal.SIGHUP or not systemd.is_supervised()
