"""Whether another user may read the database: compared with what the kernel allows."""

import grp
import itertools
import os
import pwd
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from collector.commands import check
from collector.database import Database
from collector.database.access import find_obstacles
from collector.errors import CollectorError

READER = "nobody"


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that everybody may enter, unlike pytest's own directories."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def database_in(directory: Path, directory_mode: int, file_mode: int) -> Path:
    file = directory / "data" / "x.db"
    file.parent.mkdir()
    file.touch()
    file.chmod(file_mode)
    file.parent.chmod(directory_mode)
    return file


def test_a_user_who_may_read_has_no_obstacle(directory: Path) -> None:
    file = database_in(directory, 0o755, 0o644)
    assert find_obstacles(file, READER) == []
    assert find_obstacles(file, pwd.getpwuid(os.getuid()).pw_name) == []


def test_root_may_read_with_any_mode(directory: Path) -> None:
    assert find_obstacles(database_in(directory, 0o700, 0o600), "root") == []


def test_each_obstacle_has_a_command_that_removes_it(directory: Path) -> None:
    file = database_in(directory, 0o700, 0o600)
    found = find_obstacles(file, READER)
    assert [one.reason.split(" (")[0] for one in found] == [
        f"nobody may not enter {file.parent}",
        f"nobody may not read {file}",
    ]
    for one in found:
        subprocess.run(one.command.removeprefix("sudo ").split(), check=True)
    assert find_obstacles(file, READER) == []


def test_an_unknown_user_and_a_missing_database_are_reported(directory: Path) -> None:
    with pytest.raises(CollectorError, match="there is no user no-such-user"):
        find_obstacles(directory, "no-such-user")
    with pytest.raises(CollectorError, match="No such file"):
        find_obstacles(directory / "missing.db", READER)


def reads(file: Path, groups: list[int]) -> bool:
    """Return whether the kernel allows a process of the reader with these extra groups to read the file."""
    account = pwd.getpwnam(READER)
    ended = subprocess.run(
        ["cat", str(file)], user=account.pw_uid, group=account.pw_gid, extra_groups=groups,
        stderr=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    return ended.returncode == 0


@pytest.mark.slow
def test_for_every_mode_and_owner_the_result_is_the_kernels_and_the_commands_fix_it(directory: Path) -> None:
    """Needs root: it changes owners of files and reads as another user."""
    joined = grp.getgrnam("users").gr_gid
    own = pwd.getpwnam(READER)
    owners = [(0, 0), (0, joined), (own.pw_uid, joined), (0, own.pw_gid)]
    for number, (directory_mode, file_mode, (uid, gid)) in enumerate(
        itertools.product(
            (0o700, 0o710, 0o750, 0o701, 0o070, 0o755), (0o600, 0o640, 0o604, 0o040, 0o644), owners
        )
    ):
        base = directory / str(number)
        base.mkdir()
        file = database_in(base, directory_mode, file_mode)
        os.chown(file, uid, gid)
        os.chown(file.parent, uid, gid)
        found = find_obstacles(file, READER)
        assert (found == []) == reads(file, []), (oct(directory_mode), oct(file_mode), uid, gid)
        groups = []
        for one in found:
            if "usermod" in one.command:
                assert one.command == "sudo usermod -aG users nobody"
                groups.append(joined)
            else:
                subprocess.run(one.command.removeprefix("sudo ").split(), check=True)
        assert reads(file, groups), (oct(directory_mode), oct(file_mode), uid, gid, found)


def test_check_tells_that_a_database_in_wal_mode_cannot_be_read_without_write_permission(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "find_obstacles", lambda *_: [])
    database = tmp_path / "d.db"
    Database(database).close()
    settings = tmp_path / "collector.toml"
    settings.write_text(f'[database]\npath = "{database}"\n')
    assert check.run_checks(settings, "nobody")
    with closing(sqlite3.connect(database)) as other:
        other.execute("PRAGMA journal_mode = WAL")
    assert not check.run_checks(settings, "nobody")
    assert "is in WAL mode" in capsys.readouterr().out
