"""A FUSE file system that fails on command, and that can simulate a power cut.

Usage: python -m tests.support.failing_files DIRECTORY MOUNT_POINT; needs root and /dev/fuse.

It shows a directory at another path. It reads commands as lines of JSON and answers each with a line:
  {"fail": NUMBER}              from now on writing fails with this error number; with EROFS every other change
                                fails too, as in a read-only file system; 0: nothing fails
  {"cut": [NAME, IMAGE, SEED]}  write IMAGE as the content of the file NAME after a power cut at this moment: of
                                what was written since its last fsync, some is there and some is not
It implements the kernel's protocol itself (linux/fuse.h): no library is needed, and requests are served one by
one.
"""

import ctypes
import errno
import json
import os
import random
import select
import shutil
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

ROOT_NODE = 1
_MAX_WRITE = 128 * 1024
_REQUEST_BYTES = _MAX_WRITE + 4096
_REQUEST, _REPLY = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ")
_ATTRIBUTES, _ENTRY = struct.Struct("<6Q10I"), struct.Struct("<4Q2I")
_INIT, _STATISTICS, _NAME = struct.Struct("<4I2H2I2H8I"), struct.Struct("<5Q4I24x"), struct.Struct("<2Q2I")
_SET_MODE, _SET_UID, _SET_GID, _SET_SIZE, _SET_FILE = 1, 2, 4, 8, 64
_BIG_WRITES = 1 << 5
_DETACH = 2
_NO_DEVICES_NOR_SETUID = 4 | 2


class FailingFiles:
    """The file system, mounted during the `with` block.

    Args:
        directory: a directory of an ordinary file system, which contains the files.
        mount_point: an empty directory, at which they are shown.
    """

    def __init__(self, directory: Path, mount_point: Path) -> None:
        self._arguments = (str(directory), str(mount_point))

    @contextmanager
    def failing(self, number: int) -> Iterator[None]:
        """Make writing fail with this error number; with EROFS also creating, renaming and removing files."""
        self._send(fail=number)
        try:
            yield
        finally:
            self._send(fail=0)

    def cut_power(self, name: str, image: Path, seed: int) -> None:
        """Write the content that a file would have after a power cut at this moment."""
        self._send(cut=[name, str(image), seed])

    def _send(self, **command: object) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", __name__, *self._arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        assert self._process.stdout.readline() == "mounted\n"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()


_Handler = Callable[[int, bytes], bytes]
"""Handles a request about a node, with its arguments; returns the answer, or raises OSError."""


class _Server:
    """The server for the kernel's requests.

    Args:
        directory: the directory that is shown.
        device: descriptor of /dev/fuse, mounted.
    """

    def __init__(self, directory: str, device: int) -> None:
        self._device = device
        self._nodes = {ROOT_NODE: directory}
        self._written: dict[str, list[tuple[int, bytes, bytes]]] = {}
        self._paths: dict[int, str] = {}  # of open files
        self._error = 0
        self._handlers: dict[int, _Handler] = {
            1: self._lookup,
            3: self._get_attributes,
            4: self._unless_read_only(self._set_attributes),
            9: self._unless_read_only(self._make_directory),
            10: self._unless_read_only(self._unlink),
            11: self._unless_read_only(self._remove_directory),
            12: self._unless_read_only(self._rename),
            14: self._open,
            15: self._read,
            16: self._unless_failing(self._write),
            17: self._statistics,
            18: self._release,
            20: self._unless_failing(self._synchronise),
            25: _nothing,  # flush, at each close
            26: _initialise,
            27: self._open_directory,
            28: self._read_directory,
            29: self._release,
            30: self._unless_failing(self._synchronise),
            35: self._unless_read_only(self._create),
        }
        self._unanswered = {2, 36, 42}  # forget, interrupt, batch forget

    def serve(self) -> None:
        """Serve requests and commands until the end of the input."""
        while True:
            ready, _, _ = select.select([self._device, sys.stdin], [], [])
            if self._device in ready:
                self._answer(os.read(self._device, _REQUEST_BYTES))
            elif line := sys.stdin.readline():
                self._execute(json.loads(line))
                print("done", flush=True)
            else:
                return

    def _execute(self, command: dict[str, Any]) -> None:
        self._error = command.get("fail", self._error)
        if "cut" in command:
            self._cut(*command["cut"])

    def _answer(self, request: bytes) -> None:
        _, operation, unique, node, *_ = _REQUEST.unpack_from(request)
        if operation in self._unanswered:
            return
        try:
            handler = self._handlers.get(operation, _unknown)
            body, error = handler(node, request[_REQUEST.size :]), 0
        except OSError as failure:
            body, error = b"", failure.errno or errno.EIO
        with suppress(FileNotFoundError):  # the process that sent it was killed meanwhile
            os.write(self._device, _REPLY.pack(_REPLY.size + len(body), -error, unique) + body)

    def _unless_failing(self, handler: _Handler) -> _Handler:
        return lambda node, body: handler(node, body) if not self._error else _fail(self._error)

    def _unless_read_only(self, handler: _Handler) -> _Handler:
        return lambda node, body: handler(node, body) if self._error != errno.EROFS else _fail(errno.EROFS)

    # Names

    def _path(self, node: int) -> str:
        if node not in self._nodes:
            _fail(errno.ENOENT)
        return self._nodes[node]

    def _child(self, node: int, name: bytes) -> str:
        return os.path.join(self._path(node), os.fsdecode(name.rstrip(b"\0")))  # noqa: PTH118 - plain texts

    def _entry(self, path: str) -> bytes:
        status = os.lstat(path)
        node = next((known for known, its_path in self._nodes.items() if its_path == path), 0)
        if not node:
            node = max(self._nodes) + 1
            self._nodes[node] = path
        return _ENTRY.pack(node, 0, 0, 0, 0, 0) + _attributes(status)

    def _forget_path(self, path: str) -> None:
        self._nodes = {node: its_path for node, its_path in self._nodes.items() if its_path != path}
        self._written.pop(path, None)

    def _lookup(self, node: int, body: bytes) -> bytes:
        return self._entry(self._child(node, body))

    def _unlink(self, node: int, body: bytes) -> bytes:
        path = self._child(node, body)
        os.unlink(path)  # noqa: PTH108
        self._forget_path(path)
        return b""

    def _make_directory(self, node: int, body: bytes) -> bytes:
        path = self._child(node, body[8:])
        os.mkdir(path, struct.unpack_from("<I", body)[0])  # noqa: PTH102
        return self._entry(path)

    def _remove_directory(self, node: int, body: bytes) -> bytes:
        path = self._child(node, body)
        os.rmdir(path)  # noqa: PTH106
        self._forget_path(path)
        return b""

    def _rename(self, node: int, body: bytes) -> bytes:
        (directory,) = struct.unpack_from("<Q", body)
        old_name, new_name, _ = body[8:].split(b"\0")
        old, new = self._child(node, old_name), self._child(directory, new_name)
        os.rename(old, new)  # noqa: PTH104
        self._forget_path(new)
        self._nodes = {n: new if path == old else path for n, path in self._nodes.items()}
        return b""

    # Attributes

    def _get_attributes(self, node: int, body: bytes) -> bytes:
        has_file, _, file = struct.unpack_from("<2IQ", body)
        return bytes(16) + _attributes(os.fstat(file) if has_file & 1 else os.lstat(self._path(node)))

    def _set_attributes(self, node: int, body: bytes) -> bytes:
        wanted, _, file, size = struct.unpack_from("<2I2Q", body)
        mode, _, uid, gid = struct.unpack_from("<4I", body, 68)
        target: str | int = file if wanted & _SET_FILE else self._path(node)
        if wanted & _SET_SIZE:
            os.truncate(target, size)
        if wanted & _SET_MODE:
            os.chmod(target, stat.S_IMODE(mode))  # noqa: PTH101
        if wanted & (_SET_UID | _SET_GID):
            os.chown(target, uid if wanted & _SET_UID else -1, gid if wanted & _SET_GID else -1)
        return bytes(16) + _attributes(os.stat(target))  # noqa: PTH116 - it may be a descriptor

    def _statistics(self, node: int, _body: bytes) -> bytes:
        of = os.statvfs(self._path(node))
        return _STATISTICS.pack(
            of.f_blocks,
            of.f_bfree,
            of.f_bavail,
            of.f_files,
            of.f_ffree,
            of.f_bsize,
            of.f_namemax,
            of.f_frsize,
            0,
        )

    # Files

    def _opened(self, path: str, flags: int, mode: int = 0) -> bytes:
        file = os.open(path, flags | os.O_CLOEXEC, mode)
        self._paths[file] = path
        return struct.pack("<Q2I", file, 0, 0)

    def _open(self, node: int, body: bytes) -> bytes:
        (flags,) = struct.unpack_from("<I", body)
        readable = os.O_RDWR if flags & os.O_ACCMODE == os.O_WRONLY else flags & os.O_ACCMODE
        return self._opened(self._path(node), readable)

    def _create(self, node: int, body: bytes) -> bytes:
        _flags, mode = struct.unpack_from("<2I", body)
        path = self._child(node, body[16:])
        opened = self._opened(path, os.O_RDWR | os.O_CREAT, stat.S_IMODE(mode))
        return self._entry(path) + opened

    def _read(self, _node: int, body: bytes) -> bytes:
        file, offset, size = struct.unpack_from("<2QI", body)
        return os.pread(file, size, offset)

    def _write(self, _node: int, body: bytes) -> bytes:
        file, offset, size = struct.unpack_from("<2QI", body)
        data = body[40 : 40 + size]
        before = os.pread(file, size, offset).ljust(size, b"\0")
        self._written.setdefault(self._paths[file], []).append((offset, before, data))
        return struct.pack("<2I", os.pwrite(file, data, offset), 0)

    def _synchronise(self, _node: int, body: bytes) -> bytes:
        (file,) = struct.unpack_from("<Q", body)
        self._written.pop(self._paths[file], None)
        return b""

    def _release(self, _node: int, body: bytes) -> bytes:
        (file,) = struct.unpack_from("<Q", body)
        os.close(file)
        del self._paths[file]
        return b""

    def _open_directory(self, node: int, _body: bytes) -> bytes:
        return self._opened(self._path(node), os.O_RDONLY | os.O_DIRECTORY)

    def _read_directory(self, node: int, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<2QI", body)
        answer = b""
        for number, name in enumerate(sorted(os.listdir(self._path(node)))[offset:], offset + 1):  # noqa: PTH208
            status, encoded = os.lstat(self._child(node, os.fsencode(name))), os.fsencode(name)
            entry = (
                _NAME.pack(status.st_ino, number, len(encoded), stat.S_IFMT(status.st_mode) >> 12) + encoded
            )
            entry += bytes(-len(entry) % 8)
            if len(answer) + len(entry) > size:
                break
            answer += entry
        return answer

    # A power cut

    def _cut(self, name: str, image: str, seed: int) -> None:
        path, chance = self._child(ROOT_NODE, os.fsencode(name)), random.Random(seed)
        lost_share = chance.choice([0.1, 0.5, 1])
        written = self._written.get(path, [])
        shutil.copyfile(path, image)
        file = os.open(image, os.O_WRONLY)
        for offset, before, _ in reversed(written):
            os.pwrite(file, before, offset)
        for offset, _, data in written:
            if chance.random() >= lost_share:
                os.pwrite(file, data, offset)
        os.close(file)


def _fail(number: int) -> NoReturn:
    raise OSError(number, os.strerror(number))


def _unknown(_node: int, _body: bytes) -> bytes:
    _fail(errno.ENOSYS)


def _nothing(_node: int, _body: bytes) -> bytes:
    return b""


def _initialise(_node: int, body: bytes) -> bytes:
    major, _minor, readahead, _flags = struct.unpack_from("<4I", body)
    return _INIT.pack(major, 31, readahead, _BIG_WRITES, 16, 12, _MAX_WRITE, 1, 0, 0, *[0] * 8)


def _attributes(of: os.stat_result) -> bytes:
    times = (of.st_atime_ns, of.st_mtime_ns, of.st_ctime_ns)
    seconds, rest = [t // 10**9 for t in times], [t % 10**9 for t in times]
    return _ATTRIBUTES.pack(
        of.st_ino,
        of.st_size,
        of.st_blocks,
        *seconds,
        *rest,
        of.st_mode,
        of.st_nlink,
        of.st_uid,
        of.st_gid,
        0,
        4096,
        0,
    )


def main() -> None:
    directory, mount_point = sys.argv[1:]
    library = ctypes.CDLL(None, use_errno=True)
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    if library.mount(
        b"failing_files", mount_point.encode(), b"fuse", _NO_DEVICES_NOR_SETUID, options.encode()
    ):
        raise OSError(ctypes.get_errno(), f"cannot mount at {mount_point}")
    try:
        print("mounted", flush=True)
        _Server(directory, device).serve()
    finally:
        library.umount2(mount_point.encode(), _DETACH)


if __name__ == "__main__":
    main()
