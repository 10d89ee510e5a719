"""A TCP server that answers with any bytes, such as no real llama-server sends."""

import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

Script = Callable[[str], Iterator[bytes | float]]
"""Yields the bytes to send for a path, piece by piece; the connection is closed after the last.

A number is a pause in seconds, which ends early where the client closes the connection."""


def answer(status: int, body: str | bytes, *headers: str) -> bytes:
    content = body.encode() if isinstance(body, str) else body
    lines = (f"HTTP/1.1 {status} X", f"Content-Length: {len(content)}", *headers)
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


class OddServer:
    """Answers one request a connection, on 127.0.0.1.

    Args:
        script: what to send; each requested path is added to `paths`, each whole request to `requests`.
        tls: with it, the server speaks https.
        unix_socket: where it listens instead.
    """

    def __init__(
        self, script: Script, tls: ssl.SSLContext | None = None, unix_socket: Path | None = None
    ) -> None:
        self._script = script
        self._tls = tls
        if unix_socket:
            self._listener = socket.create_server(str(unix_socket), family=socket.AF_UNIX)
            self.url = f"unix://{unix_socket}"
        else:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._listener.getsockname()[1]}"
        self.paths: list[str] = []
        self.requests: list[str] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        try:
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
            request = connection.recv(65536).decode("latin-1")
            self.requests.append(request)
            path = request.split(" ")[1] if " " in request else ""
            self.paths.append(path)
            for piece in self._script(path):
                if isinstance(piece, bytes):
                    connection.sendall(piece)
                elif select.select([connection], [], [], piece)[0]:
                    return
        except OSError:  # the client closed the connection
            return
        finally:
            connection.close()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)
