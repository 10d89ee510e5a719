"""Tests in process, network and mount namespaces of their own, as containers have them.

A test with the marker `namespaces` sees only the processes and ports that it starts itself, so another
llama-server on the machine, or of a test that runs at the same time, is invisible to it; and whatever the
test leaves running ends with it. Only the body of the test runs there. Its fixtures run outside: they may
download and build, and must not start a process that the test is to see.

It needs root or unprivileged user namespaces. Where neither is there, and under `--pdb`, which needs the
terminal, the test runs outside.
"""

import ctypes
import fcntl
import os
import pickle
import signal
import socket
import struct
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NoReturn

import pytest

_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x00020000, 0x10000000, 0x20000000, 0x40000000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_PR_SET_PDEATHSIG = 1
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1

_libc = ctypes.CDLL(None, use_errno=True)


@cache
def are_available() -> bool:
    """Return whether this process may create namespaces."""
    try:
        run_in_namespaces(lambda: None)
    except pytest.fail.Exception:
        return False
    return True


def run_in_namespaces(test: Callable[[], object]) -> None:
    """Run a function in new namespaces and wait for its end.

    Three processes take part. The first creates the namespaces and stays outside the process namespace. Its
    child is process 1 there: the kernel kills every process of the namespace when it ends, and it ends with
    its parent. The function runs in a child of process 1, because signals without a handler, such as the
    SIGTERM of a test, do not reach a process 1.

    Args:
        test: what to run. Only its failure comes back, not what it returns or changes.

    Raises:
        pytest.fail.Exception: the function failed; the message contains its traceback.
        pytest.skip.Exception: the function skipped the test.
    """
    reader, writer = os.pipe()
    _flush()
    first = os.fork()
    if not first:
        os.close(reader)
        _run_first(test, writer)
    os.close(writer)
    try:
        with open(reader, "rb") as results:  # noqa: PTH123 - a file descriptor has no path
            result = results.read()  # until every process that has the writing end has ended
    finally:  # also after a time-out, which arrives as an exception in the line above
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)
    if not result:
        pytest.fail("the process of the test ended without a result", pytrace=False)
    outcome, message = pickle.loads(result)
    if outcome == "skipped":
        pytest.skip(message)
    if outcome == "failed":
        pytest.fail(message, pytrace=False)


def _run_first(test: Callable[[], object], writer: int) -> NoReturn:
    try:
        _create_namespaces()
        if not (process_1 := os.fork()):
            _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            _mount_proc()
            _start_loopback()
            if not (child := os.fork()):
                os.write(writer, pickle.dumps(_outcome(test)))
                _flush()
                os._exit(0)
            os.close(writer)
            while os.wait()[0] != child:  # process 1 also collects the orphans of the namespace
                pass
            os._exit(0)
        os.waitpid(process_1, 0)
    except BaseException as error:  # noqa: BLE001 - a forked child must not return into pytest
        os.write(writer, pickle.dumps(("failed", f"no namespaces: {error!r}")))
    os._exit(0)


def _outcome(test: Callable[[], object]) -> tuple[str, str]:
    try:
        test()
    except pytest.skip.Exception as skipped:
        return "skipped", str(skipped)
    except BaseException:  # noqa: BLE001 - reported by the parent, also where it is a KeyboardInterrupt
        return "failed", str(pytest.ExceptionInfo.from_current().getrepr(style="long"))
    return "passed", ""


def _create_namespaces() -> None:
    """Move this process into new namespaces; the process namespace begins with its next child."""
    user, group = os.geteuid(), os.getegid()
    flags = _CLONE_NEWPID | _CLONE_NEWNET | _CLONE_NEWNS
    _call("unshare", flags if user == 0 else flags | _CLONE_NEWUSER)
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def _mount_proc() -> None:
    """Show the processes of the namespace in /proc, to this mount namespace only."""
    _call("mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
    _call("mount", b"proc", b"/proc", b"proc", 0, None)


def _start_loopback() -> None:
    request = struct.pack("16sh14x", b"lo", _IFF_UP)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, request)


def _call(function: str, *arguments: object) -> None:
    if getattr(_libc, function)(*arguments) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")


def _flush() -> None:
    """Write what is buffered, so that a forked child does not write it again."""
    sys.stdout.flush()
    sys.stderr.flush()
