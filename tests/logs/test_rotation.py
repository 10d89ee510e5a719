"""The order of rotated files: names and status in, ordered names out."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from collector.logs.position import FilePosition
from collector.logs.rotation import is_compressed, is_rotated, paths_to_follow, rotated_after, rotated_between

LOG = Path("/var/log/llama.log")
DEVICE = 7


@dataclass(frozen=True)
class Status:
    """What `os.stat` returns, as far as it matters."""

    st_ino: int
    st_mtime_ns: int
    st_dev: int = DEVICE


Suffixes = dict[str, tuple[int, int]]
"""Inode and time of the last change by suffix; the empty suffix is the file at the path."""


def statuses(suffixes: Suffixes) -> dict[Path, Status]:
    return {Path(f"{LOG}{suffix}"): Status(*values) for suffix, values in suffixes.items()}


def position(inode: int, modified_ns: int = 0, device: int = DEVICE) -> FilePosition:
    return FilePosition(device, inode, modified_ns=modified_ns)


def suffixes_of(paths: list[Path]) -> list[str]:
    return [str(path).removeprefix(str(LOG)) for path in paths]


@pytest.mark.parametrize(
    "suffix",
    [
        ".1",
        ".23",
        "-1",
        "-20260131",
        ".20260131",
        ".2026-01-31",
        ".2026-01-31T10:00:00",
        "-20260131_1",
        ".old",
    ],
)
def test_a_name_that_rotation_gives_is_recognized(suffix: str) -> None:
    assert is_rotated(LOG, Path(f"{LOG}{suffix}"))


@pytest.mark.parametrize(
    "suffix", ["", ".notes", "2", ".1.notes", "-backup", ".older", ".old.1x", "~", ".1.gz"]
)
def test_other_names_are_not_those_of_rotated_files(suffix: str) -> None:
    assert not is_rotated(LOG, Path(f"{LOG}{suffix}"))


def test_a_rotated_file_of_another_log_is_not_one_of_this_log() -> None:
    assert not is_rotated(LOG, LOG.with_name("other.log.1"))


@pytest.mark.parametrize("suffix", [".1.gz", ".2.xz", "-20260131.zst", ".bz2", ".lz4", ".zip"])
def test_a_compressed_file_is_recognized(suffix: str) -> None:
    assert is_compressed(f"{LOG}{suffix}")
    assert not is_compressed(LOG)


@pytest.mark.parametrize(
    ("files", "after", "expected"),
    [
        pytest.param({"": (1, 50)}, position(1), [], id="no rotated file"),
        pytest.param(
            {"": (9, 50), ".1": (3, 40), ".2": (2, 30), ".3": (1, 20)},
            position(1),
            [".2", ".1"],
            id="numbers, the file was renamed to the greatest",
        ),
        pytest.param(
            {".10": (1, 1), ".9": (2, 1), ".2": (3, 1), ".1": (4, 1)},
            position(1),
            [".9", ".2", ".1"],
            id="numbers of several digits, times that say nothing",
        ),
        pytest.param(
            {".1": (1, 20), ".2": (2, 30), ".3": (3, 40)},
            position(1, modified_ns=20),
            [".2", ".3"],
            id="numbers that grow with time",
        ),
        pytest.param(
            {".1": (3, 40), ".2": (2, 30), ".3": (1, 20)},
            position(3, modified_ns=40),
            [],
            id="numbers, the file was renamed to the smallest",
        ),
        pytest.param(
            {"-20260101": (1, 9), "-20260102": (2, 9), "-20260103": (3, 9)},
            position(1),
            ["-20260102", "-20260103"],
            id="dates, the file was renamed to the first",
        ),
        pytest.param(
            {".2026-01-02T10:00": (2, 9), ".2026-01-02T09:00": (1, 9)},
            position(1),
            [".2026-01-02T10:00"],
            id="dates with times of day",
        ),
        pytest.param(
            {".1": (3, 40), ".2": (2, 30), ".3": (1, 20)},
            position(99, modified_ns=25),
            [".2", ".1"],
            id="the file was deleted: those changed later",
        ),
        pytest.param(
            {".1": (3, 40), ".2": (2, 30), ".3": (1, 20)},
            position(1, modified_ns=25, device=8),
            [".2", ".1"],
            id="an inode of another device is another file",
        ),
        pytest.param({".1": (2, 25)}, position(99, modified_ns=25), [], id="not changed since the reading"),
        pytest.param({".old": (2, 30)}, position(99, modified_ns=25), [".old"], id=".old, changed later"),
        pytest.param({".old": (1, 30)}, position(1, modified_ns=25), [], id=".old is the file itself"),
        pytest.param(
            {".old": (1, 20), ".1": (2, 30), ".2": (3, 10)},
            position(1, modified_ns=20),
            [".1"],
            id="mixed: a number is compared with .old by its time",
        ),
        pytest.param(
            {".1": (1, 20), ".2": (4, 50), "-20260101": (2, 10), "-20260102": (3, 30)},
            position(1, modified_ns=20),
            ["-20260102", ".2"],
            id="mixed: the time decides between a date and a number",
        ),
        pytest.param(
            {".2": (2, 30), ".1": (3, 40), "-20260102": (5, 60), "-20260101": (4, 50)},
            position(99, modified_ns=0),
            [".2", ".1", "-20260101", "-20260102"],
            id="mixed: the time decides",
        ),
        pytest.param(
            {".notes": (2, 90), "2": (3, 90), ".1": (4, 90), ".1.notes": (5, 90)},
            position(99, modified_ns=25),
            [".1"],
            id="files of other programs",
        ),
    ],
)
def test_rotated_files_after_a_file_come_in_the_order_of_their_writing(
    files: Suffixes, after: FilePosition, expected: list[str]
) -> None:
    assert suffixes_of(rotated_after(LOG, statuses(files), after)) == expected
    backwards = dict(reversed(files.items()))
    assert suffixes_of(rotated_after(LOG, statuses(backwards), after)) == expected


@pytest.mark.parametrize(
    ("files", "before", "until", "expected"),
    [
        pytest.param(
            {"": (9, 50), ".1": (3, 40), ".2": (2, 30), ".3": (1, 20)},
            position(1),
            position(9),
            [".2", ".1"],
            id="up to the file at the path",
        ),
        pytest.param(
            {".1": (4, 50), ".2": (3, 40), ".3": (2, 30), ".4": (1, 20)},
            position(1, modified_ns=20),
            position(4, modified_ns=50),
            [".3", ".2"],
            id="up to a file that is rotated itself",
        ),
        pytest.param(
            {".1": (2, 30), ".2": (1, 20)}, position(1), position(2), [], id="one follows the other"
        ),
        pytest.param(
            {"": (1, 50), ".1": (2, 40)},
            position(1, modified_ns=30),
            position(1, modified_ns=30),
            [".1"],
            id="copies of the file itself, made since it was read",
        ),
    ],
)
def test_rotated_files_between_two_files_exclude_both(
    files: Suffixes, before: FilePosition, until: FilePosition, expected: list[str]
) -> None:
    assert suffixes_of(rotated_between(LOG, statuses(files), before, until)) == expected


@pytest.mark.parametrize(
    ("paths", "known", "expected"),
    [
        (["/a.log"], [], ["/a.log"]),
        (["/a.log", "/a.log.1", "/a.log.2"], [], ["/a.log"]),
        (["/a.log.1"], ["/a.log"], ["/a.log"]),
        (["/a.log.1"], [], ["/a.log.1"]),
        (["/run-1", "/run-2"], [], ["/run-1", "/run-2"]),
        (["/b.log-20260131", "/b.log.old", "/a.log"], ["/b.log"], ["/a.log", "/b.log"]),
        (["/a.log", "/a.log.gz", "/a.log.1.gz", "/b.zst"], [], ["/a.log"]),
    ],
)
def test_a_rotated_file_is_followed_as_part_of_its_log_if_that_is_known(
    paths: list[str], known: list[str], expected: list[str]
) -> None:
    assert paths_to_follow(paths, {*paths, *known}) == expected
