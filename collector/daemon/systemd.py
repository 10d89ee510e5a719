"""What systemd is told, where it started us: ready, alive, stopping, and a line for people."""

import os
import socket


def is_supervised() -> bool:
    """Whether systemd started us and wants to be told."""
    return bool(os.environ.get("NOTIFY_SOCKET"))


def notify(**states: str | int) -> None:
    """Send one message to systemd; without systemd, nothing happens.

    https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html lists the names.

    Args:
        states: for instance `READY=1`, `WATCHDOG=1`, `STATUS="…"`.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    message = "\n".join(f"{name}={value}" for name, value in states.items())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
        connection.sendto(message.encode(), address)
