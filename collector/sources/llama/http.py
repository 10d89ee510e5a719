"""HTTP requests to llama-server, with bounded answers and errors that name the state of the server."""

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

import httpcore
import httpx

from collector.errors import (
    AnswerTooLong,
    InvalidAnswer,
    RequestFailed,
    ServerBusy,
    ServerDown,
    ServerUnreachable,
    UnexpectedStatus,
)
from collector.sources.llama.bounded_network import BoundedNetwork
from collector.sources.llama.local.addresses import is_local

MAX_ANSWER_BYTES = 4 * 2**20
"""Largest accepted answer: /models of a router with 200 models has about 0.3 MB, /metrics 3 KB."""

_OK = 200
_KEEP_ALIVE_SECONDS = 5
"""After this time the server closes an idle connection."""

_MESSAGE_CHARACTERS = 200
"""Length to which a message of h11 is cut: it can contain whole headers."""

_CONNECTION_CLOSED = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
_UNKNOWN_ISSUER = (18, 19, 20, 21)
"""Error numbers of OpenSSL that are fixed by adding a certificate to the trusted ones."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer with status 200.

    Args:
        text: its body.
        headers: values by name, case-insensitive.
    """

    text: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Address:
    """Address of a llama-server, with the key and time-out of requests.

    Args:
        url: http://, https:// or unix:///PATH.sock, with its --api-prefix.
        api_key: sent with every request; None for none.
        timeout: seconds for the connection, and for each read of the answer.
    """

    url: str
    api_key: str | None = field(repr=False)
    timeout: float


def listening_address(url: str) -> str:
    """Return `HOST:PORT` or the path of the socket of a URL: the name of a server in the database."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts.path
    host = "127.0.0.1" if parts.hostname in (None, "localhost") else parts.hostname
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class LlamaHttp:
    """A connection to one llama-server.

    Args:
        address: address of the server.
    """

    def __init__(self, address: Address) -> None:
        parts = urlsplit(address.url)
        self._timeout = address.timeout
        self._is_local = is_local(address.url)
        path = quote(parts.path.rstrip("/"), safe="/%:@!$&()*+,;=~")
        self._base = (
            "http://localhost" if parts.scheme == "unix" else f"{parts.scheme}://{parts.netloc}{path}"
        )
        self._headers = {b"Accept-Encoding": b"identity"}  # a small compressed answer could become a huge one
        if address.api_key:
            self._headers[b"Authorization"] = f"Bearer {address.api_key}".encode()
        self._requests: dict[str, httpx.Request] = {}
        self._network = BoundedNetwork()
        # A transport, not a client: cookies, redirects and proxies are not wanted.
        self._transport = _Transport(
            _trusted_certificates() if parts.scheme == "https" else None,
            parts.path if parts.scheme == "unix" else None,
            self._network,
        )

    def get(self, path: str) -> Answer:
        """Send a GET request, and return the answer.

        The server closes a kept-alive connection after 5 seconds or 100 requests. If it does so while a
        request is on its way, the request is sent once more, over a new connection. Both attempts together
        last at most twice the time-out.

        Raises:
            ServerDown: nothing listens there.
            ServerUnreachable: the network does not reach it.
            ServerBusy: no complete answer within the time-out.
            InvalidAnswer: not HTTP, cut off, too long, or the certificate is not trusted.
            UnexpectedStatus: any status but 200.
        """
        self._network.begin(2 * self._timeout, MAX_ANSWER_BYTES)
        try:
            try:
                return self._send(path)
            except _CONNECTION_CLOSED:
                return self._send(path)
        except AnswerTooLong as error:
            raise InvalidAnswer(f"the answer to {path} is longer than {MAX_ANSWER_BYTES} bytes") from error
        except httpx.TransportError as error:
            raise _translate(error, is_local=self._is_local) from error
        except httpx.InvalidURL as error:  # --api-prefix of a child can be any text
            raise InvalidAnswer(f"its address is not valid: {error}") from error

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def _request(self, path: str) -> httpx.Request:
        if path not in self._requests:
            timeouts = {"timeout": httpx.Timeout(self._timeout).as_dict()}
            self._requests[path] = httpx.Request(
                "GET", self._base + path, headers=self._headers, extensions=timeouts
            )
        return self._requests[path]

    def _send(self, path: str) -> Answer:
        response = self._transport.handle_request(self._request(path))
        try:
            body = b"".join(response.iter_raw())
        finally:
            response.close()
        if response.status_code != _OK:
            raise UnexpectedStatus(response.status_code)
        return Answer(body.decode("utf-8", "replace"), response.headers)


class _Transport(httpx.HTTPTransport):
    """The transport of httpx with another network backend, for which httpx has no argument."""

    def __init__(
        self, certificates: ssl.SSLContext | None, socket: str | None, network: BoundedNetwork
    ) -> None:
        self._pool = httpcore.ConnectionPool(
            ssl_context=certificates,
            keepalive_expiry=_KEEP_ALIVE_SECONDS,
            uds=socket,
            network_backend=network,
        )


def _translate(error: httpx.TransportError, *, is_local: bool) -> RequestFailed:
    """Return what an error of httpx means for the state of the server.

    Examples: a port without a listener is `ServerDown`. A server that hangs, so that its queue of connections
    is full, is `ServerBusy`: on a Unix socket the kernel then reports BlockingIOError. A program that speaks
    another protocol is `InvalidAnswer`. Another machine that does not react to an attempt to connect is
    probably switched off, so that it is `ServerUnreachable`.

    Args:
        error: the error.
        is_local: whether the server is on this machine.
    """
    # httpx wraps an exception of httpcore, whose argument is the error of the system or of OpenSSL.
    cause = next(iter(error.__cause__.args), None) if error.__cause__ else None
    if isinstance(error, httpx.ConnectTimeout) or isinstance(cause, BlockingIOError):
        message = "it accepts no connection within [llama_server] timeout"
        return ServerBusy(f"{message}: it hangs") if is_local else ServerUnreachable(message)
    if isinstance(error, httpx.TimeoutException):
        return ServerBusy("it does not answer within [llama_server] timeout")
    if isinstance(cause, ssl.SSLError):
        return InvalidAnswer(_tls_message(cause))
    if isinstance(error, httpx.ConnectError) and not isinstance(cause, ConnectionResetError):
        nothing_listens = isinstance(cause, ConnectionRefusedError | FileNotFoundError)
        return ServerDown(str(error)) if nothing_listens else ServerUnreachable(str(error))
    return InvalidAnswer(_http_message(error))


def _http_message(error: httpx.TransportError) -> str:
    if isinstance(error, httpx.NetworkError):
        return "it closes the connection before its answer is complete"
    if isinstance(error, httpx.LocalProtocolError):
        return "the API key contains characters that no header may contain"
    return f"the program at this address does not speak HTTP ({error!s:.{_MESSAGE_CHARACTERS}})"


def _tls_message(error: ssl.SSLError) -> str:
    if not isinstance(error, ssl.SSLCertVerificationError):
        return f"the program at this address does not speak https ({error.reason})"
    if error.verify_code in _UNKNOWN_ISSUER:
        return (
            f"its certificate is not trusted ({error.verify_message}): "
            "name the file that contains it in the environment variable SSL_CERT_FILE"
        )
    return f"its certificate is not valid here ({error.verify_message}): replace it by a valid one"


def _trusted_certificates() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE"))
