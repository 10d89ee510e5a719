"""The listening TCP sockets of this machine, which any user may read: port, owner and identity of each."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_LISTENING = "0A"
_STATE, _OWNER, _INODE = 3, 7, 9
"""Positions of fields in a line of /proc/net/tcp, which proc(5) describes."""


@dataclass(frozen=True, slots=True)
class ListeningSocket:
    """A socket that accepts connections.

    Args:
        port: its TCP port.
        user_id: id of the user whose process opened it.
        inode: number that no other socket of this machine has at the same time, in whichever container.
    """

    port: int
    user_id: int
    inode: int


def listening_sockets(process: str = "self") -> frozenset[ListeningSocket]:
    """Return the listening TCP sockets that a process can reach; empty if they cannot be read.

    Args:
        process: process id, or `self`. A process in a container with a network of its own reaches others.
    """
    sockets = []
    for table in ("tcp", "tcp6"):
        with suppress(OSError, ValueError, IndexError):  # no IPv6, or the process has ended
            for line in Path("/proc", process, "net", table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[_STATE] == _LISTENING:
                    port = int(fields[1].rpartition(":")[2], 16)
                    sockets.append(ListeningSocket(port, int(fields[_OWNER]), int(fields[_INODE])))
    return frozenset(sockets)


def owners_of_port(sockets: frozenset[ListeningSocket], port: int) -> frozenset[int]:
    """Return the ids of the users whose processes listen on a port, on any address."""
    return frozenset(one.user_id for one in sockets if one.port == port)
