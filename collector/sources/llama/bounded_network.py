"""Sockets that bound a whole HTTP answer in time and size.

The time-outs of httpx apply to each read: an answer that sends one byte per second would never time out.
"""

import ssl
import time
from collections.abc import Iterable
from typing import Any

import httpcore

from collector.errors import AnswerTooLong


class BoundedNetwork(httpcore.SyncBackend):
    """A network backend of httpcore whose connections share the bounds of the request in progress."""

    def __init__(self) -> None:
        self._deadline = 0.0
        self._bytes_left = 0

    def begin(self, seconds: float, size_bytes: int) -> None:
        """Set the bounds of the next request: the time that it may last, and the size of its answer."""
        self._deadline = time.monotonic() + seconds
        self._bytes_left = size_bytes

    def seconds_left(self, timeout: float | None, error: type[httpcore.TimeoutException]) -> float:
        """Return how long the next operation on a socket may last.

        Args:
            timeout: time-out of the operation; None for none.
            error: type of the error to raise.

        Raises:
            TimeoutException: of the type `error`; no time is left.
        """
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise error
        return left if timeout is None else min(left, timeout)

    def received(self, size_bytes: int) -> None:
        """Count received bytes.

        Raises:
            AnswerTooLong: the answer is larger than its bound.
        """
        self._bytes_left -= size_bytes
        if self._bytes_left < 0:
            raise AnswerTooLong

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Open a connection; see httpcore."""
        seconds = self.seconds_left(timeout, httpcore.ConnectTimeout)
        stream = super().connect_tcp(host, port, seconds, local_address, socket_options)
        return _BoundedStream(stream, self)

    def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Open a connection; see httpcore."""
        seconds = self.seconds_left(timeout, httpcore.ConnectTimeout)
        return _BoundedStream(super().connect_unix_socket(path, seconds, socket_options), self)


class _BoundedStream(httpcore.NetworkStream):
    """A connection whose operations count against the bounds of the request."""

    def __init__(self, stream: httpcore.NetworkStream, network: BoundedNetwork) -> None:
        self._stream = stream
        self._network = network

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = self._stream.read(max_bytes, self._network.seconds_left(timeout, httpcore.ReadTimeout))
        self._network.received(len(data))
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._network.seconds_left(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        seconds = self._network.seconds_left(timeout, httpcore.ConnectTimeout)
        return _BoundedStream(self._stream.start_tls(ssl_context, server_hostname, seconds), self._network)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
