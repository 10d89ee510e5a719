"""Messages to systemd, if it has started the collector: ready, alive, stopping, and a status line."""

import os
import socket
from contextlib import suppress


def is_supervised() -> bool:
    """Return whether systemd has started this process and expects messages."""
    return bool(os.environ.get("NOTIFY_SOCKET"))


def notify(**states: str | int) -> None:
    """Send one message to systemd; do nothing without systemd.

    https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html lists the names.

    Args:
        states: for example `READY=1`, `WATCHDOG=1`, `STATUS="…"`.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    message = "\n".join(f"{name}={value}" for name, value in states.items())
    # The socket may be missing, refuse, or have a queue that is full because nobody reads it. All of that is
    # systemd's concern, and this process is to collect on: without messages systemd restarts it in the end.
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    with suppress(OSError), socket.socket(socket.AF_UNIX, kind) as connection:
        connection.sendto(message.encode(), address)
