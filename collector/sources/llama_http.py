"""Asking llama-server: one kept connection, bounded answers, and what went wrong in its own terms."""

import os
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx

MAX_BODY_BYTES = 4 * 2**20
"""A router's list of 200 models takes about 0.3 MB, /metrics 3 KB."""


_OK = 200


class ServerDown(Exception):  # noqa: N818 - it says what is the case
    """Nothing listens there, or the network does not reach it."""


class ServerBusy(Exception):  # noqa: N818
    """It took the request and did not answer in time."""


class AnswerRefused(Exception):  # noqa: N818
    """What came back is no answer of a llama-server: endless, not HTTP, or an untrusted certificate."""


class StatusRefused(Exception):  # noqa: N818
    """It answered with another status than 200.

    Args:
        status: the HTTP status.
    """

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"it answers {status}")


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of status 200 that came in whole."""

    text: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a llama-server is and how to ask it.

    Args:
        url: http://, https:// or unix:///PATH.sock, with the prefix of all its paths.
        api_key: sent with every request; None for none.
        timeout: seconds to connect, and to answer.
    """

    url: str
    api_key: str | None = field(repr=False)
    timeout: float


class LlamaHttp:
    """HTTP towards one llama-server.

    Args:
        address: where it is.
    """

    def __init__(self, address: Address) -> None:
        parts = urlsplit(address.url)
        self._timeout = address.timeout
        self._base = "http://localhost" if parts.scheme == "unix" else address.url.rstrip("/")
        self._headers = {"Accept-Encoding": "identity"}  # a compressed answer could unpack without bound
        if address.api_key:
            self._headers["Authorization"] = f"Bearer {address.api_key}"
        self._requests: dict[str, httpx.Request] = {}
        # The transport alone: a client's cookies, redirects and proxies have no business here.
        self._transport = httpx.HTTPTransport(
            verify=_trusted_certificates() if parts.scheme == "https" else False,
            uds=parts.path if parts.scheme == "unix" else None,
            trust_env=False,
        )

    def get(self, path: str) -> Answer:
        """GET one path.

        The server closes a kept connection after 5 seconds or 100 requests: a request that meets the
        closing is sent once more.

        Raises:
            ServerDown: nothing listens there.
            ServerBusy: no whole answer in time.
            AnswerRefused: not HTTP, too long, or the certificate is not trusted.
            StatusRefused: any status but 200.
        """
        try:
            return self._ask(path)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            return self._ask_explained(path)
        except httpx.HTTPError as error:
            raise _explained(error) from error

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

    def _ask_explained(self, path: str) -> Answer:
        try:
            return self._ask(path)
        except httpx.HTTPError as error:
            raise _explained(error) from error

    def _ask(self, path: str) -> Answer:
        deadline = time.monotonic() + 2 * self._timeout  # the time-out itself is between two bytes
        response = self._transport.handle_request(self._request(path))
        try:
            body = bytearray()
            for piece in response.iter_raw():
                body += piece
                if len(body) > MAX_BODY_BYTES:
                    raise AnswerRefused(f"the answer to {path} is longer than {MAX_BODY_BYTES} bytes")
                if time.monotonic() > deadline:
                    raise ServerBusy
        finally:
            response.close()
        if response.status_code != _OK:
            raise StatusRefused(response.status_code)
        return Answer(body.decode("utf-8", "replace"), response.headers)


def _explained(error: httpx.HTTPError) -> Exception:
    if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout | httpx.PoolTimeout):
        return ServerBusy()
    if "CERTIFICATE" in str(error).upper():
        return AnswerRefused(
            f"its certificate is not trusted ({error}): "
            "name the file that holds it in the environment variable SSL_CERT_FILE"
        )
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return ServerDown(str(error))
    if isinstance(error, httpx.ReadError | httpx.WriteError):
        return ServerDown(f"it closed the connection ({error})" if str(error) else "it closed the connection")
    return AnswerRefused(f"what answers there does not speak HTTP ({error})")


def _trusted_certificates() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE"))
