"""Which disk a path is on."""

import os

import pytest

from collector.models import mounts
from collector.models.mounts import Mounts, mount_points

TABLE = r"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 8:2 / /mnt/my\040disk rw shared:2 master:1 - xfs /dev/sdb1 rw
31 22 0:50 / /nas rw - autofs systemd-1 rw
32 31 0:51 / /nas/models rw - nfs4 server:/export rw
33 22 8:3 / /twice rw - ext4 /dev/lower rw
34 22 8:4 / /twice rw - ext4 /dev/upper rw
"""


@pytest.fixture
def without_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "_file_system_id", lambda _: 0)


@pytest.mark.parametrize(
    ("path", "disk"),
    [
        ("/", "/ /dev/sda1"),
        ("/mnt", "/ /dev/sda1"),
        ("/mnt/my disk/a/b", "/mnt/my disk /dev/sdb1"),
        ("/mnt/my disk 2", "/ /dev/sda1"),
        ("/nas", "/ /dev/sda1"),
        ("/nas/models", "/nas/models server:/export"),
        ("/twice/a", "/twice /dev/upper"),
    ],
)
@pytest.mark.usefixtures("without_ids")
def test_a_path_is_on_the_disk_mounted_nearest_above_it(path: str, disk: str) -> None:
    assert Mounts(TABLE).disk_of(path) == disk


def test_a_file_system_with_an_id_is_identified_by_it() -> None:
    assert Mounts.now().disk_of("/proc") == f"/proc {os.statvfs('/proc').f_fsid}"


def test_without_a_mount_table_everything_is_one_disk() -> None:
    assert mount_points(Mounts("").disk_of("/any/where")) == "/"


def test_several_disks_are_shown_as_their_mount_points() -> None:
    assert mount_points("/mnt/my disk /dev/sdb1\n/ 42") == "/mnt/my disk, /"
