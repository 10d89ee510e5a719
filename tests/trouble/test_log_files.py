"""Every line once and in order, whatever the files are called, and whatever happens to them."""

import os
import shutil
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from collector.logs import rewrite, tail
from tests.support.log_reading import LogCollector, file_collector

STEP_SECONDS = 0.012
"""Longer than a tick of the kernel's clock, so that no two files have the same time of change."""


class Place:
    """A directory in which a server writes numbered lines, and a program rotates its log.

    Args:
        directory: an empty one.
        name: of the log.
        rotated: returns the names to which a rotation moves files, as pairs of old and new name, the first
            one first; its arguments are the names in the directory and the number of the rotation.
    """

    def __init__(self, directory: Path, name: str, rotated: "Names") -> None:
        self.directory, self.log = directory, directory / name
        self._rotated = rotated
        self._rotations = 0
        self.written: list[str] = []
        self._backup = directory.parent / "copy-of-the-log"
        self.log.touch()

    def write(self, lines: int) -> None:
        """Write lines at the end of the log, as a server that has it open for appending."""
        time.sleep(STEP_SECONDS)
        numbers = range(len(self.written), len(self.written) + lines)
        self.written += [f"srv  update_slots: line {number}" for number in numbers]
        with self.log.open("a") as file:
            file.writelines(
                f"0.00.{number:03}.000 I srv  update_slots: line {number}\n" for number in numbers
            )

    def rotate(self, *, copy: bool) -> None:
        time.sleep(STEP_SECONDS)
        names = sorted(path.name for path in self.directory.iterdir())
        self._rotations += 1
        for old, new in self._rotated(self.log.name, names, self._rotations):
            source, target = self.directory / old, self.directory / new
            if source == self.log and copy:
                shutil.copyfile(source, target)
                os.truncate(source, 0)
            else:
                source.rename(target)
        self.log.touch()

    def rename(self) -> None:
        self.rotate(copy=False)

    def copytruncate(self) -> None:
        self.rotate(copy=True)

    def replace_by_longer_copy(self) -> None:
        """As rsync does: a copy with more lines takes the place of the log."""
        copy = self.directory / ".llama.tmp"
        shutil.copyfile(self.log, copy)
        log, self.log = self.log, copy
        self.write(3)
        self.log = log
        copy.rename(log)

    def touch(self) -> None:
        time.sleep(STEP_SECONDS)
        for path in self.directory.iterdir():
            os.utime(path)

    def restore(self) -> None:
        """Put a copy back that was made before the last lines were written; they are elsewhere as well."""
        self.rename()
        time.sleep(STEP_SECONDS)
        if self._backup.exists():
            self.log.unlink()
            shutil.copyfile(self._backup, self.log)

    def save_copy(self) -> None:
        shutil.copyfile(self.log, self._backup)


Names = Callable[[str, list[str], int], list[tuple[str, str]]]


def shifted(form: str) -> Names:
    """Numbers that grow with age: the rotated files are renamed, the oldest first."""

    def rotated(name: str, names: list[str], _rotation: int) -> list[tuple[str, str]]:
        stem, extension = name.rsplit(".", 1) if "." in name else (name, "")
        first = 0 if form.endswith("0}") else 1
        pattern = form.replace("{0}", "{}")
        numbers = [
            n for n in range(20) if pattern.format(n, name=name, stem=stem, extension=extension) in names
        ]
        pairs = [
            (
                pattern.format(n, name=name, stem=stem, extension=extension),
                pattern.format(n + 1, name=name, stem=stem, extension=extension),
            )
            for n in reversed(numbers)
        ]
        return [*pairs, (name, pattern.format(first, name=name, stem=stem, extension=extension))]

    return rotated


def named(form: str) -> Names:
    """Numbers or dates that grow with time: a rotated file keeps its name."""

    def rotated(name: str, _names: list[str], rotation: int) -> list[tuple[str, str]]:
        stem, extension = name.rsplit(".", 1) if "." in name else (name, "")
        return [(name, form.format(rotation, name=name, stem=stem, extension=extension))]

    return rotated


SCHEMES: dict[str, tuple[str, Names]] = {
    "logrotate": ("llama.log", shifted("{name}.{}")),
    "ascending numbers": ("llama.log", named("{name}.{}")),
    "a number before the extension": ("llama-server.log", shifted("{stem}.{}.{extension}")),
    "a date before the extension": ("llama-server.log", named("{stem}-2026112{}.{extension}")),
    "pm2": ("llama.log", named("{stem}__2026-11-2{}_00-00-00.{extension}")),
    "dateext": ("llama.log", named("{name}-2026112{}")),
    "s6": ("current", named("@4000000067e4000{}00000000.s")),
    "savelog": ("llama.log", shifted("{name}.{0}")),
    "log4j": ("llama.log", named("{stem}-{}.{extension}")),
}
OPERATIONS = {
    "rename": Place.rename,
    "copytruncate": Place.copytruncate,
    "replaced by a longer copy": Place.replace_by_longer_copy,
    "touched": Place.touch,
    "restored from a copy": Place.restore,
}
TIMES = ("live", "stopped", "killed")
PATTERNS = ("literal", "glob", "both")


def patterns(place: Place, which: str) -> list[Path]:
    literal, wild = place.log, place.directory / "*"
    return {"literal": [literal], "glob": [wild], "both": [literal, wild]}[which]


IN_THE_DEFAULT_SUITE = ("logrotate", "ascending numbers", "a date before the extension", "s6")

CASES = [
    pytest.param(
        *case,
        id=", ".join(case),
        marks=()
        if case[0] in IN_THE_DEFAULT_SUITE and case[2:] == ("stopped", "literal")
        else pytest.mark.slow,
    )
    for case in product(SCHEMES, OPERATIONS, TIMES, PATTERNS)
]


@pytest.mark.parametrize(("scheme", "operation", "when", "which"), CASES)
def test_every_line_is_stored_once_and_in_order(
    scheme: str, operation: str, when: str, which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(rewrite, "SUSPICION_SECONDS", 0.02)
    name, names = SCHEMES[scheme]
    (tmp_path / "logs").mkdir()
    place = Place(tmp_path / "logs", name, names)

    def run() -> LogCollector:
        return file_collector(tmp_path / "llama.db", *patterns(place, which))

    collector = run()
    for _ in range(3):
        place.write(4)
        collector.poll()
        place.save_copy()
        place.write(3)
        if when == "live":
            collector.poll()
        else:
            if when == "killed":
                collector.reader.poll()  # what was read is not committed
            collector.__exit__(None, None, None)
        OPERATIONS[operation](place)
        if when == "live":
            settle(collector)
        else:
            collector = run()
            settle(collector)
    place.write(2)
    settle(collector)
    stored = collector.messages()
    collector.__exit__(None, None, None)
    assert stored == place.written


def settle(collector: LogCollector) -> None:
    """Poll until nothing more is found, also by the searches for new files."""
    for _ in range(12):
        collector.poll()
        time.sleep(0.004)
