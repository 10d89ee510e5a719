"""A server of recorded answers that keeps connections alive, and dies and comes back at once on the same address."""

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.odd_server import answer

QUIET_ADDRESS = "127.83.12.7"
"""Nobody else listens on it or connects from it: a port that was given up is still free a moment later."""


class RestartingServer:
    """Answers one client at a time.

    Args:
        body: what a path is answered with, and the number of the run.
        unix_socket: where it listens; None for a port.

    Attributes:
        dies_after: bytes of the next answer after which it is killed; None = it lives on.
        run: how many times it was started.
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
        """End it, with its connection; nothing where it has ended."""
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
                with suppress(OSError):  # it is to end, or the client left
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
            _wake(listener)  # nobody is let in any more
            connection.sendall(data[: self.dies_after])
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return  # on a port, what follows is a reset

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _wake(opened: socket.socket) -> None:
    """Whoever waits for it goes on; its own thread closes it."""
    with suppress(OSError):  # it has ended
        opened.shutdown(socket.SHUT_RDWR)
