"""Whether another user may read: held against what the kernel says."""

import grp
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.commands.access import obstacles
from collector.errors import CollectorError

READER = "nobody"


@pytest.fixture
def directory() -> Iterator[Path]:
    """Where everybody may enter, unlike pytest's own directories."""
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


def test_who_may_read_meets_no_obstacle(directory: Path) -> None:
    file = database_in(directory, 0o755, 0o644)
    assert obstacles(file, READER) == []
    assert obstacles(file, pwd.getpwuid(os.getuid()).pw_name) == []


def test_root_reads_whatever_the_modes_say(directory: Path) -> None:
    assert obstacles(database_in(directory, 0o700, 0o600), "root") == []


def test_every_obstacle_comes_with_a_command_that_takes_it_away(directory: Path) -> None:
    file = database_in(directory, 0o700, 0o600)
    found = obstacles(file, READER)
    assert [one.reason.split(" (")[0] for one in found] == [
        f"nobody may not enter {file.parent}",
        f"nobody may not read {file}",
    ]
    for one in found:
        subprocess.run(one.command.removeprefix("sudo ").split(), check=True)
    assert obstacles(file, READER) == []


def test_an_unknown_user_and_a_missing_database_are_said(directory: Path) -> None:
    with pytest.raises(CollectorError, match="there is no user no-such-user"):
        obstacles(directory, "no-such-user")
    with pytest.raises(CollectorError, match="No such file"):
        obstacles(directory / "missing.db", READER)


def reads(file: Path, groups: list[int]) -> bool:
    """Whether the kernel lets a process of the reader, in these groups beside its own, read the file."""
    account = pwd.getpwnam(READER)
    ended = subprocess.run(
        ["cat", str(file)], user=account.pw_uid, group=account.pw_gid, extra_groups=groups,
        stderr=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    return ended.returncode == 0


@pytest.mark.slow
def test_for_every_mode_and_owner_the_kernel_agrees_and_the_commands_mend_it(directory: Path) -> None:
    """As root: it gives files to other users and reads as another one."""
    joined = grp.getgrnam("users").gr_gid
    own = pwd.getpwnam(READER)
    owners = [(0, 0), (0, joined), (own.pw_uid, joined), (0, own.pw_gid)]
    for number, (directory_mode, file_mode, (uid, gid)) in enumerate(
        itertools.product(
            (0o700, 0o710, 0o750, 0o701, 0o070, 0o755), (0o600, 0o640, 0o604, 0o040, 0o644), owners
        )
    ):
        place = directory / str(number)
        place.mkdir()
        file = database_in(place, directory_mode, file_mode)
        os.chown(file, uid, gid)
        os.chown(file.parent, uid, gid)
        found = obstacles(file, READER)
        assert (found == []) == reads(file, []), (oct(directory_mode), oct(file_mode), uid, gid)
        groups = []
        for one in found:
            if "usermod" in one.command:
                assert one.command == "sudo usermod -aG users nobody"
                groups.append(joined)
            else:
                subprocess.run(one.command.removeprefix("sudo ").split(), check=True)
        assert reads(file, groups), (oct(directory_mode), oct(file_mode), uid, gid, found)
