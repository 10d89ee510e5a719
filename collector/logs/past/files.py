"""Whole log files, also compressed ones, in pieces and as records."""

import gzip
import lzma
import os
import subprocess
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from collector.errors import SourceFailed
from collector.logs.chunk import complete_records
from collector.logs.tail import open_regular_file
from collector.parsers.log.keys import key_follows_after
from collector.parsers.log.record import MAX_LINE_BYTES, Record

PIECE_BYTES = 256 * 1024
"""Bytes read at once."""

_MAX_LINES = PIECE_BYTES  # a piece has no more
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_OPENERS = ((b"\x1f\x8b", gzip.open), (b"\xfd7zXZ\0", lzma.open))


def read_pieces(path: Path) -> Iterator[bytes]:
    """Yield the content of a log file, decompressed if its first bytes say that it is compressed.

    Raises:
        SourceFailed: it cannot be read, is damaged, or needs a program that is missing.
    """
    try:
        with _open(path) as file:
            while piece := file.read(PIECE_BYTES):
                yield piece
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise SourceFailed(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def read_records(path: Path) -> Iterator[list[Record]]:
    """Yield the records of a log file, some at a time.

    Raises:
        SourceFailed: see `read_pieces`.
    """
    key_follows = False
    rest = b""
    for piece in read_pieces(path):
        rest += piece
        if b"\n" not in piece:
            if len(rest) > 2 * MAX_LINE_BYTES:  # of an overlong line the beginning is enough
                rest = rest[: MAX_LINE_BYTES + 1]
            continue
        part = complete_records(rest, _MAX_LINES, key_follows=key_follows, at_end=False, is_settled=False)
        key_follows = key_follows_after(part.records, key_follows=key_follows)
        rest = rest[part.size_bytes :]
        yield part.records
    if rest:
        part = complete_records(
            rest + b"\n", _MAX_LINES, key_follows=key_follows, at_end=True, is_settled=True
        )
        yield part.records


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    """Open a log file for reading."""
    descriptor = open_regular_file(path)
    with os.fdopen(descriptor, "rb") as plain:
        magic = os.pread(descriptor, 6, 0)  # does not move where zstd begins to read
        if magic.startswith(_ZSTD_MAGIC):
            with _open_zstd(path, plain) as file:
                yield file
            return
        for beginning, opener in _OPENERS:
            if magic.startswith(beginning):
                with opener(plain) as file:
                    yield cast("IO[bytes]", file)
                return
        yield plain


@contextmanager
def _open_zstd(path: Path, plain: IO[bytes]) -> Iterator[IO[bytes]]:
    """Open a file that the program zstd decompresses: Python has it from version 3.14 on only."""
    command = ["zstd", "--decompress", "--stdout", "--quiet"]
    try:
        process = subprocess.Popen(  # noqa: S603 - our own arguments; no shell
            command,
            stdin=plain,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    except FileNotFoundError as error:
        raise SourceFailed(
            f"{path} is compressed, and there is no program zstd here: install it, or decompress the file"
        ) from error
    try:
        assert process.stdout
        yield process.stdout
        if process.wait():
            assert process.stderr
            message = process.stderr.read(500).decode("utf-8", "replace").strip()
            raise SourceFailed(f"{path} cannot be read: {message}")
    finally:
        process.kill()
        process.communicate()
