"""Sockets with a bound on a whole answer: on its time, however often a byte arrives, and on its size."""

import ssl
import time
from collections.abc import Iterable
from typing import Any

import httpcore

from collector.errors import AnswerTooLong


class BoundedNetwork(httpcore.SyncBackend):
    """Opens connections that share one bound, that of the request in progress."""

    def __init__(self) -> None:
        self._deadline = 0.0
        self._bytes_left = 0

    def begin(self, seconds: float, size_bytes: int) -> None:
        """Start the bound of one request: the time and the bytes that its answer may need."""
        self._deadline = time.monotonic() + seconds
        self._bytes_left = size_bytes

    def seconds_left(self, timeout: float | None, error: type[httpcore.TimeoutException]) -> float:
        """Return how long one step may last.

        Raises:
            TimeoutException: of the type `error`: no time is left.
        """
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise error
        return left if timeout is None else min(left, timeout)

    def received(self, size_bytes: int) -> None:
        """Count received bytes.

        Raises:
            AnswerTooLong: they are more than the answer may have.
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
        """See httpcore."""
        seconds = self.seconds_left(timeout, httpcore.ConnectTimeout)
        stream = super().connect_tcp(host, port, seconds, local_address, socket_options)
        return _BoundedStream(stream, self)

    def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """See httpcore."""
        seconds = self.seconds_left(timeout, httpcore.ConnectTimeout)
        return _BoundedStream(super().connect_unix_socket(path, seconds, socket_options), self)


class _BoundedStream(httpcore.NetworkStream):
    """A connection whose steps count against the bound."""

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
