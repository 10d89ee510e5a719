"""How far a log file was read, and how that is stored: the JSON in `log_positions.position`.

A position must identify its file in spite of everything that happens to files while nobody reads them. A
name does not identify a file, since rotation renames it. An inode does not either: ext4 gives the inode of
a deleted file to the next new one. Therefore a position also stores a digest of the bytes that were read
last. A file is the file of a position if it still contains these bytes at that offset.

The format is that of version 0.1.0. Positions that it stored must stay readable.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Protocol, Self

from collector.parsers.log.time import StoredClock
from collector.parsers.requests.tracker import StoredRequests

ANCHOR_BYTES = 1024
"""Length of each of the two parts of an anchor."""

Identity = tuple[int, int]
"""Device and inode of a file: unique among the files that exist at one moment."""

Models = Mapping[int, str]
"""Model of each child of a router, by the child's port."""


class Status(Protocol):
    """The part of `os.stat_result` that identifies a file, and that the order of rotated files depends on."""

    @property
    def st_dev(self) -> int:
        """Device."""

    @property
    def st_ino(self) -> int:
        """Inode."""

    @property
    def st_mtime_ns(self) -> int:
        """Time of the last change, nanoseconds."""


def identity_of(status: Status) -> Identity:
    """Return device and inode."""
    return status.st_dev, status.st_ino


@dataclass(frozen=True, slots=True)
class Anchor:
    """Bytes of a file that show whether it is still the file that was read, and unchanged.

    Both parts are needed. The head alone is the same for every run of llama-server that starts with the
    same line; the bytes before the offset alone may be a line that is repeated.

    Args:
        head: the first bytes of the file, not beyond the offset.
        before: as many bytes before the offset.
    """

    head: bytes = b""
    before: bytes = b""

    @classmethod
    def read(cls, descriptor: int, offset: int) -> Self:
        """Read the anchor of an open file."""
        length = min(offset, ANCHOR_BYTES)
        return cls(os.pread(descriptor, length, 0), os.pread(descriptor, length, offset - length))

    def extended(self, data: bytes) -> Self:
        """Return the anchor after these bytes, which follow the offset."""
        head = self.head
        if len(head) < ANCHOR_BYTES:
            head = (head + data[:ANCHOR_BYTES])[:ANCHOR_BYTES]
        return type(self)(head, (self.before + data[-ANCHOR_BYTES:])[-ANCHOR_BYTES:])

    @property
    def digest(self) -> str:
        """The digest that is stored with the position."""
        return blake2b(self.head + self.before, digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class FilePosition:
    """A file and the offset up to which it was read.

    The field names are the keys of the stored JSON.

    Args:
        device: device of the file.
        inode: inode of the file.
        offset: bytes that were read and stored.
        digest: of the `Anchor`.
        modified_ns: time of the file's last change, as it was when the file was read.
        read_at: Unix seconds at which the file was read.
        skipping: whether the offset is inside an overlong line, whose rest is not stored.
        key_follows: whether the last line ended with the flag of an API key, so that the next line is a key.
        clock: starts and last stamps of the processes that wrote the file (`StampClock.to_store`).
    """

    device: int
    inode: int
    offset: int = 0
    digest: str = ""
    modified_ns: int = 0
    read_at: float = 0.0
    skipping: bool = False
    key_follows: bool = False
    clock: StoredClock = field(default_factory=dict)

    @classmethod
    def at_start(cls, status: Status) -> Self:
        """Return the position at the beginning of a file."""
        return cls(*identity_of(status), digest=Anchor().digest, modified_ns=status.st_mtime_ns)

    @property
    def identity(self) -> Identity:
        """Device and inode."""
        return self.device, self.inode


@dataclass(frozen=True, slots=True)
class PathPosition:
    """How far the files of one path were read: its current file, and renamed ones that are still read.

    Args:
        models: of the router's children whose lines the files contain.
        files: the oldest file first. The last one is, or was, at the path.
        finished: files that were read to their end and closed: their content is never read again, whatever
            name and times it has. Version 0.1.0 ignores them.
        requests: open requests (`RequestTracker.to_store`). Version 0.1.0 ignores them.
    """

    models: Models = field(default_factory=dict)
    files: Sequence[FilePosition] = ()
    finished: Sequence[FilePosition] = ()
    requests: StoredRequests = field(default_factory=dict)

    @classmethod
    def from_json(cls, stored: str) -> Self:
        """Return the position that `to_json` returned this text for."""
        value = json.loads(stored)
        models = {int(port): model for port, model in value.get("models", {}).items()}
        files, finished = (
            [FilePosition(**file) for file in value.get(key, ())] for key in ("files", "finished")
        )
        return cls(models, files, finished, value.get("requests", {}))

    def to_json(self) -> str:
        """Return the text that is stored in `log_positions.position`."""
        value: dict[str, object] = {"models": dict(self.models), "files": list(map(asdict, self.files))}
        if self.finished:
            value["finished"] = list(map(asdict, self.finished))
        if self.requests:
            value["requests"] = self.requests
        return json.dumps(value)


def position_name(path: str | Path) -> str:
    """Return the name under which the position of a path is stored.

    A path of bytes that are no UTF-8 contains surrogates, which SQLite cannot store.
    """
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
