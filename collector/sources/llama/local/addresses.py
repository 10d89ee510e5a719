"""Whether a URL leads to this machine, and which of its processes listens there."""

import socket
import time
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

import psutil

from collector.parsers.command_line import option
from collector.sources.llama.local.process import DEFAULT_PORTS, LlamaProcess
from collector.sources.llama.local.sockets import listening_sockets

REFRESH_SECONDS = 60
"""How often the addresses of this machine are read."""

ANY_ADDRESS = ("0.0.0.0", "::", "*")  # noqa: S104 - compared, not bound
"""Values of --host of a server that listens on all addresses."""


def is_local(url: str) -> bool:
    """Return whether the host of a URL is this machine: a loopback address or that of an own interface.

    No name is resolved, as that could wait for a name server; localhost and the own name are known.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    if parts.scheme == "unix" or host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return host == socket.gethostname().lower()
    address = getattr(address, "ipv4_mapped", None) or address
    if address.is_loopback or address.is_unspecified:
        return True
    return str(address).partition("%")[0] in _own_addresses(time.monotonic() // REFRESH_SECONDS)


@lru_cache(maxsize=1)
def _own_addresses(_period: float) -> frozenset[str]:
    """Return the addresses of the interfaces of this machine, read once in each period.

    Binding a socket to an address shows less: with net.ipv4.ip_nonlocal_bind any address can be bound.
    """
    interfaces = psutil.net_if_addrs().values()
    return frozenset(one.address.partition("%")[0] for addresses in interfaces for one in addresses)


def process_at(url: str, processes: Sequence[LlamaProcess]) -> LlamaProcess | None:
    """Return the process that listens at a URL; None if it cannot be determined.

    It is the one whose command line has the port and host, or the socket. If none has, because an environment
    variable set them, or a container publishes its port under another number, it is the only process that
    may be the one. Example: `podman run -p 9000:8080` of a server, and the URL http://127.0.0.1:9000.

    A server of another machine has no process here, even if one here listens on a port of that number.
    """
    if not is_local(url):
        return None
    parts = urlsplit(url)
    if parts.scheme == "unix":
        listening = [one for one in processes if parts.path in _hosts(one)]
        possible = [one for one in processes if not _hosts(one)]
    else:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        at_host = [one for one in processes if _may_listen_at(one, parts)]
        explicit = [one for one in at_host if one.port == port]
        by_default = [one for one in at_host if one.port is None and port in DEFAULT_PORTS]
        listening = explicit or by_default
        possible = [one for one in processes if _may_have_other_port(one)]
    candidates = listening or possible
    return candidates[0] if len(candidates) == 1 else None


def _hosts(process: LlamaProcess) -> list[str]:
    """Return the values of --host, a list with commas; empty without that option."""
    return [host for host in (option(process.arguments, "--host") or "").split(",") if host]


def _may_listen_at(process: LlamaProcess, parts: SplitResult) -> bool:
    """Return whether the option --host of a process may include the host of a URL.

    Example: two servers listen on port 8080, one on 127.0.0.1 and one on 192.0.2.5.
    """
    hosts, wanted = _hosts(process), parts.hostname or ""
    if not hosts or any(host in ANY_ADDRESS for host in hosts):
        return True
    try:
        is_loopback = wanted == "localhost" or ip_address(wanted).is_loopback
    except ValueError:
        return True  # a name, which may have any address
    same_kind = ("127.0.0.1", "localhost", "::1") if is_loopback else ()
    return any(host == wanted or (host in same_kind) or not _is_address(host) for host in hosts)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _may_have_other_port(process: LlamaProcess) -> bool:
    """Return whether a process may be reached on another port than that of its command line.

    That is so without the option --port, and in a container with a network of its own, whose listening
    sockets are not among those of this process.
    """
    period = time.monotonic() // REFRESH_SECONDS
    return process.port is None or _has_own_network(process.pid, process.started_boot_seconds, period)


@lru_cache(maxsize=64)
def _has_own_network(pid: int, _started: float, _period: float) -> bool:
    """Return whether a process has a network of its own, read once in each period: tables can be long."""
    sockets = listening_sockets(str(pid))
    return bool(sockets) and sockets.isdisjoint(listening_sockets())
