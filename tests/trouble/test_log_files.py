"""Every line once and in order, whatever the files are called, and whatever happens to them."""

import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from pathlib import Path

import pytest

from collector.errors import SourceAbsent, SourceFailed
from collector.logs import rewrite, tail
from collector.logs.files import LogFileReader
from collector.logs.reader import LogSink
from tests.support.log_reading import LogCollector, file_collector

FILLING = "and its text " * 30 + "ends"
"""Makes lines so long that four of them are more than the beginning of a new log."""

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
        self.written += [f"srv  update_slots: line {number} {FILLING}" for number in numbers]
        with self.log.open("a") as file:
            file.writelines(
                f"0.00.{number:03}.000 I srv  update_slots: line {number} {FILLING}\n" for number in numbers
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
        if (case[0] in IN_THE_DEFAULT_SUITE and case[2:] == ("stopped", "literal"))
        or case == ("logrotate", "touched", "live", "literal")
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


def test_a_thousand_logs_are_read_with_few_open_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "SETTLE_SECONDS", 0.0)
    logs = [tmp_path / "logs" / f"server-{number:04}-chat.log" for number in range(1100)]
    logs[0].parent.mkdir()
    for log in logs:
        log.write_text(f"first line of {log.name}\n")
    with file_collector(tmp_path / "llama.db", tmp_path / "logs" / "*.log") as collector:
        collector.poll()
        assert open_logs(logs[0].parent) <= 64
        for log in logs[::100]:
            with log.open("a") as file:
                file.write(f"second line of {log.name}\n")
        collector.poll()
        assert open_logs(logs[0].parent) <= 64
        expected = [f"first line of {log.name}" for log in logs]
        expected += [f"second line of {log.name}" for log in logs[::100]]
        assert sorted(collector.messages()) == sorted(expected)


def open_logs(directory: Path) -> int:
    """Return how many files of a directory this process has open."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the descriptor of the listing itself
            count += str(link.readlink()).startswith(str(directory))
    return count


def test_two_servers_whose_names_look_like_a_rotation_are_both_read(tmp_path: Path) -> None:
    first, second = tmp_path / "llama-server", tmp_path / "llama-server-8081"
    first.write_text("a line of the first\n")
    second.write_text("a line of the second\n")
    with file_collector(tmp_path / "llama.db", first, second) as collector:
        settle(collector)
        collector.poll_until(lambda: len(collector.messages()) == 2)
        assert sorted(collector.messages()) == ["a line of the first", "a line of the second"]


def test_a_name_that_is_not_utf_8_has_a_position(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/llama-\xff.log"
    with open(name, "w") as file:  # noqa: PTH123 - a path of bytes
        file.write("0.00.001.000 I srv  a: only once\n")
    for _ in range(2):
        with file_collector(tmp_path / "llama.db", os.fsdecode(name)) as collector:
            collector.poll_until(lambda collector=collector: bool(collector.messages()))  # type: ignore[misc]
            settle(collector)
            assert collector.messages() == ["srv  a: only once"]


def test_a_deleted_file_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "DELETED_SECONDS", -1)
    monkeypatch.setattr(tail, "SETTLE_SECONDS", 0.0)
    log = tmp_path / "logs" / "llama.log"
    log.parent.mkdir()
    log.write_text("a line\n")
    with file_collector(tmp_path / "llama.db", log) as collector:
        collector.poll()
        assert open_logs(log.parent) == 1
        log.unlink()
        with pytest.raises(SourceAbsent):
            collector.poll()
        assert open_logs(log.parent) == 0
        log.write_text("a new line\n")
        collector.poll()
        assert collector.messages() == ["a line", "a new line"]


OWN = ("llama.db", "llama.db.lock", "key")


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_a_link_to_a_file_of_the_collector_is_never_read(name: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret\n")
    log = tmp_path / "llama.log"

    def make(sink: LogSink, positions: dict[str, str]) -> LogFileReader:
        return LogFileReader([str(log)], sink, positions, lambda: [tmp_path / own for own in OWN])

    with LogCollector(tmp_path / "llama.db", make) as collector:
        if kind == "symbolic":
            log.symlink_to(tmp_path / name)
        else:
            log.hardlink_to(tmp_path / name)
        with pytest.raises(SourceFailed, match="is a file of the collector itself"):
            collector.poll()
        log.unlink()
        log.write_text("a line\n")
        collector.poll_until(lambda: collector.messages() == ["a line"])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make links of other users")
def test_a_link_of_another_user_is_not_followed_to_somebody_elses_file(tmp_path: Path) -> None:
    log, target = tmp_path / "llama.log", tmp_path / "secret"
    target.write_text("secret\n")
    log.symlink_to(target)
    os.chown(log, 4711, 4711, follow_symlinks=False)
    with file_collector(tmp_path / "llama.db", log) as collector:
        with pytest.raises(SourceFailed, match="is a link of user 4711 to a file of user 0"):
            collector.poll()
        os.chown(target, 4711, 4711)
        collector.poll_until(lambda: collector.messages() == ["secret"])


POWERSHELL = (
    "0.00.001.000 I srv  a: grüß Gott, 你好\r\n"
    "0.00.002.000 E srv  b: bad \N{SKULL}\r\n"
    "\r\n"
    "0.00.003.000 I srv  c: end\r\n"
)


@pytest.mark.parametrize("size", [1, 3, 7, 10_000])
def test_a_log_in_utf16_as_powershell_writes_it_is_read_whole_wherever_its_writes_end(
    tmp_path: Path, size: int
) -> None:
    log = tmp_path / "llama.log"
    log.touch()
    data = b"\xff\xfe" + POWERSHELL.encode("utf-16-le")
    with file_collector(tmp_path / "d.db", str(log)) as collector:
        for start in range(0, len(data), size):
            with log.open("ab") as file:
                file.write(data[start : start + size])
            collector.poll()
        os.utime(log, (1, 1))
        collector.poll()
        rows = collector.database.query("SELECT level, message FROM logs ORDER BY id")
    assert [tuple(row.values()) for row in rows] == [
        ("info", "srv  a: grüß Gott, 你好"),
        ("error", "srv  b: bad \N{SKULL}"),
        ("info", "srv  c: end"),
    ]


def test_an_older_log_that_begins_with_the_same_lines_is_not_taken_for_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = "".join(f"0.00.{n:03}.000 I srv  a: line {n} {FILLING}\n" for n in range(4))
    log, older = tmp_path / "llama.log", tmp_path / "llama.log.1"
    older.write_text(begin + "0.00.009.000 I srv  a: of an older run\n")
    log.write_text(begin)
    with file_collector(tmp_path / "d.db", str(log)) as collector:
        monkeypatch.setattr(time, "time", lambda now=time.time: now() + 60)  # it was read later than it was
        collector.poll()
        os.truncate(log, 0)
        collector.poll()
        log.write_text("0.00.000.500 I srv  a: after the truncation\n")
        collector.poll()
        os.utime(log, (1, 1))
        collector.poll()
        messages = collector.messages()
    assert messages[-1] == "srv  a: after the truncation"
    assert "srv  a: of an older run" not in messages
