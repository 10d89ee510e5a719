"""HTTP requests to llama-server: a kept-alive connection, bounded answers, errors in terms of the server."""

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
    ServerBusy,
    ServerDown,
    ServerUnreachable,
    UnexpectedStatus,
)
from collector.sources.llama.bounded_network import BoundedNetwork

MAX_ANSWER_BYTES = 4 * 2**20
"""A router's list of 200 models has about 0.3 MB, /metrics 3 KB."""

_OK = 200
_KEPT_SECONDS = 5
"""The server closes a connection that is idle for longer."""

_SHOWN_CHARACTERS = 200
"""Of a library's message about an answer: it can contain whole headers."""

_MAY_BE_CLOSING = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
_UNKNOWN_ISSUER = (18, 19, 20, 21)
"""OpenSSL's numbers of the errors that a file of certificates can fix."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer of status 200.

    Args:
        text: its body.
        headers: by name, case-insensitive.
    """

    text: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a llama-server is, and with which key and time-out it is asked.

    Args:
        url: http://, https:// or unix:///PATH.sock, with the prefix that all its paths have.
        api_key: sent with every request; None for none.
        timeout: seconds to connect, and to answer.
    """

    url: str
    api_key: str | None = field(repr=False)
    timeout: float


def listening_address(url: str) -> str:
    """Return where a URL leads to, as `HOST:PORT` or the path of a socket: the name of a server in rows."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts.path
    host = "127.0.0.1" if parts.hostname in (None, "localhost") else parts.hostname
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class LlamaHttp:
    """A connection to one llama-server.

    Args:
        address: where it is.
    """

    def __init__(self, address: Address) -> None:
        parts = urlsplit(address.url)
        self._timeout = address.timeout
        path = quote(parts.path.rstrip("/"), safe="/%:@!$&()*+,;=~")
        self._base = (
            "http://localhost" if parts.scheme == "unix" else f"{parts.scheme}://{parts.netloc}{path}"
        )
        self._headers = {b"Accept-Encoding": b"identity"}  # a compressed answer could unpack without bound
        if address.api_key:
            self._headers[b"Authorization"] = f"Bearer {address.api_key}".encode()
        self._requests: dict[str, httpx.Request] = {}
        self._network = BoundedNetwork()
        # Only the transport: cookies, redirects and proxies of a client are not used.
        self._transport = _Transport(
            _trusted_certificates() if parts.scheme == "https" else None,
            parts.path if parts.scheme == "unix" else None,
            self._network,
        )

    def get(self, path: str) -> Answer:
        """Send a GET request.

        The server closes a kept-alive connection after 5 seconds or 100 requests. A request that arrives just
        then is sent once more. Both attempts together last at most twice the time-out.

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
                return self._ask(path)
            except _MAY_BE_CLOSING:
                return self._ask(path)
        except AnswerTooLong as error:
            raise InvalidAnswer(f"the answer to {path} is longer than {MAX_ANSWER_BYTES} bytes") from error
        except httpx.TransportError as error:
            raise _explained(error) from error
        except httpx.InvalidURL as error:  # a child's --api-prefix can be anything
            raise InvalidAnswer(f"its address cannot be asked: {error}") from error

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

    def _ask(self, path: str) -> Answer:
        response = self._transport.handle_request(self._request(path))
        try:
            body = b"".join(response.iter_raw())
        finally:
            response.close()
        if response.status_code != _OK:
            raise UnexpectedStatus(response.status_code)
        return Answer(body.decode("utf-8", "replace"), response.headers)


class _Transport(httpx.HTTPTransport):
    """httpx's transport with our network backend, which only its connection pool accepts."""

    def __init__(
        self, certificates: ssl.SSLContext | None, socket: str | None, network: BoundedNetwork
    ) -> None:
        self._pool = httpcore.ConnectionPool(
            ssl_context=certificates, keepalive_expiry=_KEPT_SECONDS, uds=socket, network_backend=network
        )


def _explained(error: httpx.TransportError) -> Exception:
    cause = _system_error(error)
    if isinstance(error, httpx.ConnectTimeout) or isinstance(cause, BlockingIOError):
        return ServerBusy(
            "it accepts no connection within [llama_server] timeout: "
            "it hangs, or its machine cannot be reached"
        )
    if isinstance(error, httpx.TimeoutException):
        return ServerBusy("it does not answer within [llama_server] timeout")
    if isinstance(cause, ssl.SSLError):
        return InvalidAnswer(_tls_fault(cause))
    if isinstance(error, httpx.ConnectError) and not isinstance(cause, ConnectionResetError):
        nothing_listens = isinstance(cause, ConnectionRefusedError | FileNotFoundError)
        return ServerDown(str(error)) if nothing_listens else ServerUnreachable(str(error))
    return InvalidAnswer(_http_fault(error))


def _system_error(error: httpx.TransportError) -> object:
    """Return the error of the system or of OpenSSL, from the exception of httpcore that httpx wraps."""
    return next(iter(error.__cause__.args), None) if error.__cause__ else None


def _http_fault(error: httpx.TransportError) -> str:
    if isinstance(error, httpx.NetworkError):
        return "it closes the connection before its answer is whole"
    if isinstance(error, httpx.LocalProtocolError):
        return "the API key contains characters that no header may contain"
    return f"what answers there does not speak HTTP ({error!s:.{_SHOWN_CHARACTERS}})"


def _tls_fault(error: ssl.SSLError) -> str:
    if not isinstance(error, ssl.SSLCertVerificationError):
        return f"what listens there does not speak https ({error.reason})"
    if error.verify_code in _UNKNOWN_ISSUER:
        return (
            f"its certificate is not trusted ({error.verify_message}): "
            "name the file that contains it in the environment variable SSL_CERT_FILE"
        )
    return f"its certificate is not valid here ({error.verify_message}): replace it by one that is"


def _trusted_certificates() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE"))
