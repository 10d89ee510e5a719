import fcntl
import threading
from pathlib import Path

import pytest

from collector.database.locks import collector_lock
from collector.database.locks.collector_lock import CollectorLock, lock_path
from collector.errors import DatabaseInUse


def test_a_lock_that_is_held_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    database = tmp_path / "d.db"
    with lock_path(database).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        timer = threading.Timer(0.1, fcntl.flock, (file, fcntl.LOCK_UN))
        timer.start()
        lock = CollectorLock(database)
        lock.acquire()
        timer.join()
    lock.release()


def test_a_lock_that_is_held_on_is_not_waited_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector_lock, "_TIMEOUT_SECONDS", 0.05)
    database = tmp_path / "d.db"
    first, second = CollectorLock(database), CollectorLock(database)
    first.acquire()
    with pytest.raises(DatabaseInUse):
        second.acquire()
    first.release()
    second.acquire()
    second.release()
