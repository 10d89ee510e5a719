"""A server of recorded answers that keeps connections alive, and restarts at once on the same address."""

import os
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.odd_server import answer

QUIET_ADDRESS = f"127.83.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"
"""No other process listens on it or connects from it, so that a port is still free when the server starts again."""


class RestartingServer:
    """Answers one client at a time.

    Args:
        body: returns the answer to a path in the run of that number.
        unix_socket: where it listens; None for a port.

    Attributes:
        dies_after: bytes of the next answer after which the server ends; None = it goes on.
        run: number of starts.
    """

    def __init__(self, body: Callable[[str, int], str], unix_socket: Path | None = None) -> None:
        self._body = body
        self._unix_socket = unix_socket
        self._port = 0
        self._listener: socket.socket | None = None
        self._connection: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._is_ending = False
        self.dies_after: int | None = None
        self.run = 0

    @property
    def url(self) -> str:
        return f"unix://{self._unix_socket}" if self._unix_socket else f"http://{QUIET_ADDRESS}:{self._port}"

    def start(self) -> None:
        self._join()
        self.run += 1
        self.dies_after = None
        self._is_ending = False
        self._listener = self._listen()
        self._thread = threading.Thread(target=self._serve, args=(self._listener,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the server and its connection, if it runs."""
        self._is_ending = True
        for opened in (self._listener, self._connection):
            if opened:
                _wake(opened)
        self._join()

    def _join(self) -> None:
        if self._thread:
            self._thread.join(10)
            assert not self._thread.is_alive()

    def _listen(self) -> socket.socket:
        if self._unix_socket:
            self._unix_socket.unlink(missing_ok=True)
            return socket.create_server(str(self._unix_socket), family=socket.AF_UNIX)
        listener = socket.create_server((QUIET_ADDRESS, self._port))
        self._port = listener.getsockname()[1]
        return listener

    def _serve(self, listener: socket.socket) -> None:
        with listener:
            while not self._is_ending:
                with suppress(OSError):  # stopped, or the client closed
                    self._connection, _ = listener.accept()
                    with self._connection:
                        self._answer(listener, self._connection)

    def _answer(self, listener: socket.socket, connection: socket.socket) -> None:
        while request := connection.recv(65536).decode():
            body = self._body(request.split(" ")[1], self.run)
            data = answer(200, body, f"Process-Start-Time-Unix: {self.run}")
            if self.dies_after is None:
                connection.sendall(data)
                continue
            self._is_ending = True
            _wake(listener)  # refuse new connections
            connection.sendall(data[: self.dies_after])
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return  # closing now resets a TCP connection

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _wake(opened: socket.socket) -> None:
    """Interrupt the thread that waits for a socket; it closes the socket itself."""
    with suppress(OSError):  # already closed
        opened.shutdown(socket.SHUT_RDWR)
