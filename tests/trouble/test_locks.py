"""Locks on the lock file, and links in its place: the start says who and why, and root is not misled."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from collector.catalog import open_database
from collector.database.locks.collector_lock import CollectorLock, lock_path
from collector.database.ownership import match_owner
from collector.errors import DatabaseError, DatabaseInUse

LOCK = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_SH); print('locked', flush=True); sys.stdin.read()"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "llama.db"
    open_database(path).close()
    return path


def test_a_reader_that_locks_the_lock_file_is_named_and_no_dead_process_is_blamed(path: Path) -> None:
    lock_path(path).write_text("999999999\n")  # of a collector that was killed
    command = [sys.executable, "-c", LOCK, str(lock_path(path))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdout
        reader.stdout.readline()
        with pytest.raises(DatabaseInUse) as error:
            open_database(path)
        reader.communicate()
    assert f"process {reader.pid} (" in str(error.value)
    assert "999999999" not in str(error.value)


def test_another_collector_is_named(path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "import pathlib, sys; from collector.catalog import open_database; "
        "d = open_database(pathlib.Path(sys.argv[1])); print('open', flush=True); sys.stdin.read()",
        str(path),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as collector:
        assert collector.stdout
        collector.stdout.readline()
        with pytest.raises(DatabaseInUse, match=rf"another collector \(process {collector.pid}\)"):
            open_database(path)
        collector.communicate()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.EIO], ids=errno.errorcode.get)
def test_a_file_system_without_locks_is_named_with_the_remedy(
    code: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(DatabaseError, match=r"cannot be locked: .*\[database\] path"):
        open_database(path)


@pytest.mark.parametrize("kind", ["a link", "a dangling link", "a hard link", "a pipe", "a directory"])
def test_what_somebody_put_in_the_place_of_the_lock_file_is_not_opened(kind: str, path: Path) -> None:
    lock, target = lock_path(path), path.with_name("target")
    lock.unlink()
    if kind != "a dangling link":
        target.write_text("precious")
    if kind == "a hard link":
        lock.hardlink_to(target)
    elif kind == "a pipe":
        os.mkfifo(lock)
    elif kind == "a directory":
        lock.mkdir()
    else:
        lock.symlink_to(target)
    with pytest.raises(DatabaseError):
        CollectorLock(path).acquire()
    assert not target.exists() or target.read_text() == "precious"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_what_root_creates_belongs_to_the_owner_of_the_directory(tmp_path: Path) -> None:
    os.chown(tmp_path, 4711, 4712)
    path = tmp_path / "llama.db"
    open_database(path).close()
    owners = {(status.st_uid, status.st_gid) for status in map(Path.stat, (path, lock_path(path)))}
    assert owners == {(4711, 4712)}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_link_is_never_followed(tmp_path: Path) -> None:
    os.chown(tmp_path, 4711, 4712)
    target = tmp_path / "target"
    target.touch()
    (tmp_path / "link").symlink_to(target)
    match_owner(tmp_path / "link")
    assert target.stat().st_uid == 0
