"""Answers that no llama-server sends, byte by byte: those of any other program that listens on its port."""

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.support.odd_server import answer

Pieces = Iterator[bytes | float]

BLOCK = b"x" * 65536
BLOCKS_OF_A_GIGABYTE = 2**30 // len(BLOCK)
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
OK_LINE = b"HTTP/1.1 200 OK\r\n"
PAUSES = 40
"""Of a dripping answer: it lasts far longer than a reading may, and ends."""


@dataclass(frozen=True, slots=True)
class Hostile:
    """One answer.

    Args:
        pieces: its bytes, and pauses in seconds.
        states: those that the source may have after it.
    """

    pieces: Callable[[], Pieces]
    states: tuple[str, ...] = ("wrong answer",)


def _whole(*data: bytes) -> Hostile:
    return Hostile(lambda: iter(data))


def _forever(head: bytes, piece: bytes = BLOCK, times: int = BLOCKS_OF_A_GIGABYTE) -> Hostile:
    """Return an answer so long that only a client which closes the connection ends it soon."""

    def pieces() -> Pieces:
        yield head
        for _ in range(times):
            yield piece

    return Hostile(pieces)


def _dripping(head: bytes, piece: bytes = b"x", pause: float = 0.25) -> Hostile:
    """Return an answer with a piece before each read time-out: each wait is short, their sum is too long."""

    def pieces() -> Pieces:
        yield head
        for _ in range(PAUSES):
            yield pause
            yield piece

    return Hostile(pieces, ("busy",))


def _silent(head: bytes = b"") -> Hostile:
    return Hostile(lambda: iter([head, PAUSES * 0.25]), ("busy",))


def _body(text: str | bytes, *headers: str) -> Hostile:
    return _whole(answer(200, text, *headers))


def _status(status: int, *headers: str) -> Hostile:
    return _whole(answer(status, "{}", *headers))


BODIES = {
    "nothing": _body(""),
    "HTML": _body("<!DOCTYPE html><html><body>It works!</body></html>"),
    "HTML that is called JSON": _body("<html>", "Content-Type: application/json"),
    "JSON that is cut off": _body('{"model_path": "/m.gguf", "total_'),
    "a JSON list": _body('[{"model_path": "/m.gguf"}]'),
    "a JSON null": _body("null"),
    "JSON NaN": _body("NaN"),
    "a million open brackets": _body("[" * 1_000_000),
    "objects in objects": _body('{"a":' * 200_000),
    "a million empty lists": _body("[" + "[]," * 1_000_000 + "[]]"),
    "a number of a million digits": _body('{"total_slots": ' + "7" * 1_000_000 + "}"),
    "UTF-16": _body('{"model_path": "/m.gguf"}'.encode("utf-16")),
    "UTF-8 with a mark": _body('{"model_path": "/m.gguf"}'.encode("utf-8-sig")),
    "Latin-1": _body("{Größe}".encode("latin-1")),
    "no UTF-8 at all": _body(bytes(range(128, 256)) * 100),
    "zeros": _body(b"\0" * 100_000),
    "a bomb of gzip": _body(gzip.compress(b" " * 10_000_000), "Content-Encoding: gzip"),
    "deflate that is none": _body(b"\x78\x9c" * 1000, "Content-Encoding: deflate"),
    "an encoding in Brotli": _body(b"\x0b\x02\x80", "Content-Encoding: br"),
    "an unknown encoding": _body(b"\1\2\3", "Content-Encoding: rot13"),
    "a metric name of 1 MB": _body("llamacpp:" + "n" * 2**20 + " 1\n"),
    "a label of 1 MB": _body('llamacpp:x{a="' + "n" * 2**20 + '"} 1\n'),
    "100,000 metrics": _body("".join(f"llamacpp:x{number} 1\n" for number in range(100_000))),
    "metrics without numbers": _body("llamacpp:prompt_tokens_total \nllamacpp:requests_processing\n"),
    "metrics that are cut off": _body("llamacpp:prompt_tokens_total 1\nllamacpp:requests_processing 12"),
    "1 GB": _forever(OK_LINE + b"Content-Length: 1073741824\r\n\r\n"),
    "1 GB until the end": _forever(OK_LINE + b"\r\n"),
    "1 GB in chunks": _forever(CHUNKED, b"10000\r\n" + BLOCK + b"\r\n"),
    "1 GB in one chunk": _forever(CHUNKED + b"40000000\r\n"),
    "1 GB with status 500": _forever(b"HTTP/1.1 500 X\r\n\r\n"),
}

FRAMES = {
    "a chunk that is no number": _whole(CHUNKED, b"zz\r\n{}\r\n0\r\n\r\n"),
    "a negative chunk": _whole(CHUNKED, b"-5\r\n{}\r\n0\r\n\r\n"),
    "a chunk of 21 digits": _whole(CHUNKED, b"f" * 21 + b"\r\n{}"),
    "a chunk of 16 EB": _whole(CHUNKED, b"f" * 16 + b"\r\n{}"),
    "a chunk without end": _whole(CHUNKED, b"5\r\n{"),
    "a chunk that is longer than it says": _whole(CHUNKED, b"1\r\n{}}}}}\r\n0\r\n\r\n"),
    "chunks without the last": _whole(CHUNKED, b"2\r\n{}\r\n"),
    "a trailer without end": _forever(CHUNKED + b"2\r\n{}\r\n0\r\nX: ", times=2000),
    "a line of 100 MB before a chunk": _forever(CHUNKED, b"5" * 65536, times=1600),
    "a length that is no number": _whole(OK_LINE + b"Content-Length: five\r\n\r\n{}"),
    "a negative length": _whole(OK_LINE + b"Content-Length: -5\r\n\r\n{}"),
    "a length of 5,000 digits": _whole(OK_LINE + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n{}"),
    "two lengths": _whole(OK_LINE + b"Content-Length: 5\r\nContent-Length: 2\r\n\r\n{}"),
    "more length than body": _whole(OK_LINE + b"Content-Length: 100\r\n\r\n{}"),
    "less length than body": _whole(OK_LINE + b"Content-Length: 1\r\n\r\n{}"),
    "an unknown transfer encoding": _whole(OK_LINE + b"Transfer-Encoding: gzip\r\n\r\n{}"),
    "chunks and a length without chunks": _whole(
        OK_LINE + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n{}"
    ),
}

HEADS = {
    "nothing but an end": _whole(),
    "an empty line": _whole(b"\r\n"),
    "a line of SSH": _whole(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "a line of SMTP": _whole(b"220 mail.example.org ESMTP\r\n"),
    "an alert of TLS": _whole(b"\x15\x03\x01\x00\x02\x02\x46"),
    "zeros without a line": _forever(b"", b"\0" * 65536, times=1600),
    "HTTP/0.9": _whole(b"<html>hello</html>\r\n"),
    "HTTP/2": _whole(b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\n[]"),
    "frames of HTTP/2": _whole(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + b"\0" * 18),
    "HTTP/3.7": _whole(b"HTTP/3.7 200 OK\r\nContent-Length: 2\r\n\r\n[]"),
    "ICY": _whole(b"ICY 200 OK\r\nContent-Length: 2\r\n\r\n{}"),
    "a status that is no number": _whole(b"HTTP/1.1 abc OK\r\n\r\n{}"),
    "a status of five digits": _whole(b"HTTP/1.1 20000 OK\r\n\r\n{}"),
    "status 0": _whole(b"HTTP/1.1 000 OK\r\n\r\n{}"),
    "status 999": _status(999),
    "status 204": _whole(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "status 206": _status(206),
    "status 304": _whole(b"HTTP/1.1 304 Not Modified\r\n\r\n"),
    "status 500": _status(500),
    "a header without a colon": _whole(OK_LINE + b"nonsense\r\nContent-Length: 2\r\n\r\n{}"),
    "a header with a zero": _whole(OK_LINE + b"X: a\0b\r\nContent-Length: 2\r\n\r\n{}"),
    "a header with escapes for a terminal": _whole(OK_LINE + b"\x1b[2J\x1b]0;x\x07: 1\r\n\r\n{}"),
    "a bad header of 50 KB": _whole(OK_LINE + b"n\x07" + b"n" * 50_000 + b"\r\n\r\n{}"),
    "a header of 100 MB": _forever(OK_LINE + b"X: ", times=1600),
    "a header folded without end": _forever(OK_LINE + b"X: 1\r\n", b" x\r\n" * 10_000, times=1600),
    "10,000 headers": _whole(
        OK_LINE, *(b"X-Number-%05d: %b\r\n" % (n, b"y" * 50) for n in range(10_000)), b"\r\n{}"
    ),
    "headers without end": _forever(OK_LINE, b"X-Some: thing\r\n" * 4000),
    "long 103 Early Hints without end": _forever(b"", b"HTTP/1.1 103 X\r\nLink: " + BLOCK + b"\r\n\r\n"),
    "100 Continue and an end": _whole(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "101 Switching Protocols": _whole(
        b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81\x05hello"
    ),
    "a redirect to itself": _status(302, "Location: /props"),
    "a redirect to another host": _status(301, "Location: http://198.51.100.1:9/props"),
    "a redirect to a file": _status(307, "Location: file:///etc/passwd"),
    "a redirect to nowhere": _status(308),
}

SLOW = {
    "100 Continue without end": Hostile(
        _forever(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000).pieces, ("busy", "wrong answer")
    ),
    "chunks of one byte without end": Hostile(
        _forever(CHUNKED, b"1\r\nx\r\n" * 1000).pieces, ("busy", "wrong answer")
    ),
    "silence": _silent(),
    "a head and silence": _silent(OK_LINE + b"Content-Length: 5\r\n\r\n"),
    "half a head and silence": _silent(OK_LINE + b"Content-Le"),
    "half a body and silence": _silent(OK_LINE + b"Content-Length: 5\r\n\r\n{"),
    "dripping status": _dripping(b"HTTP/1.1 200 "),
    "dripping header": _dripping(OK_LINE + b"X: "),
    "dripping headers": _dripping(OK_LINE, b"X: y\r\n"),
    "dripping 100 Continue": _dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "dripping body": _dripping(OK_LINE + b"Content-Length: 100000\r\n\r\n"),
    "dripping chunks": _dripping(CHUNKED, b"1\r\nx\r\n"),
    "dripping line of a chunk": _dripping(CHUNKED + b"5;", b"x"),
    "dripping trailer": _dripping(CHUNKED + b"1\r\nx\r\n0\r\nX: "),
}

EVERYTHING = BODIES | FRAMES | HEADS | SLOW


def router_models(*models: tuple[str, str, list[str]]) -> str:
    """Return the list of a router's models.

    Args:
        models: name, state and command line of the process of each.
    """
    return json.dumps(
        {"data": [{"id": name, "status": {"value": state, "args": args}} for name, state, args in models]}
    )
