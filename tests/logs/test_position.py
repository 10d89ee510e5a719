"""Stored positions: those of version 0.1.0 must be continued exactly."""

import json
import os
import sys
from pathlib import Path

import pytest

from collector.logs.journal.reader import JournalPosition, JournalReader
from collector.logs.position import FilePosition, PathPosition
from tests.support.log_reading import LogCollector, file_collector

CONTENT_0_1_0 = (
    "0.00.001.000 I srv          load: spawning server instance with name=gemma-b on port 40463\n"
    "[40463] 0.00.500.000 I srv  test: child\n"
    "0.02.000.000 I srv          load:   --api-key\n"
)
FILE_POSITION_0_1_0 = (
    '{"models": {"40463": "gemma-b"}, "files": [{"device": 65024, "inode": 2235454, "offset": 177, '
    '"digest": "db6a5ab83ec27a0e17f9ae45a7f7ee2d", "modified_ns": 1790000002000000000, '
    '"read_at": 1795657247.536862, "skipping": false, "key_follows": true, '
    '"clock": {"0": [1790000000.0, 2.0], "40463": [1790000000.001, 0.5]}}]}'
)
JOURNAL_POSITION_0_1_0 = (
    '{"cursor": "s=d4be41bdc78d4c458894eca9683f10fd;i=2;b=0123456789abcdef0123456789abcdef;m=1e8480;'
    't=65bfeda446480;x=7664a8038994625b", "microseconds": 1790000002000000, '
    '"units": ["llama-server.service"], "key_process": "42", "models": {"40463": "gemma-b"}}'
)
"""What version 0.1.0 stored after these lines, word for word."""


def store_position(database: Path, name: str, position: str) -> None:
    with file_collector(database, "unused") as collector, collector.database.transaction() as connection:
        connection.execute("INSERT INTO log_positions VALUES (?, ?, 0)", (name, position))


def test_positions_of_version_0_1_0_are_stored_in_the_same_words() -> None:
    assert PathPosition.from_json(FILE_POSITION_0_1_0).to_json() == FILE_POSITION_0_1_0
    assert JournalPosition.from_json(JOURNAL_POSITION_0_1_0).to_json() == JOURNAL_POSITION_0_1_0
    (file,) = PathPosition.from_json(FILE_POSITION_0_1_0).files
    assert isinstance(file, FilePosition)
    assert (file.offset, file.key_follows, file.skipping) == (177, True, False)


def test_a_file_continues_at_a_position_of_version_0_1_0(tmp_path: Path) -> None:
    log, database = tmp_path / "llama.log", tmp_path / "data" / "logs.db"
    log.write_text(CONTENT_0_1_0)
    # Device and inode are those of another machine; the device may differ, the inode must not.
    store_position(database, str(log), FILE_POSITION_0_1_0.replace("2235454", str(log.stat().st_ino)))
    with log.open("a") as file:
        file.write(
            "0.02.000.000 I srv          load:   SECRET\n"
            "[40463] 0.03.000.000 W srv  test: child again\n"
            "0.09.000.000 I srv  test: end\n"
        )
    os.utime(log, (1_790_000_100, 1_790_000_100))
    with file_collector(database, log) as collector:
        collector.poll()
        assert [tuple(row.values()) for row in collector.rows()] == [
            ("info", "srv          load:   ***", "llama-server", 1_790_000_002),
            ("warn", "srv  test: child again", "gemma-b", 1_790_000_003),
            ("info", "srv  test: end", "llama-server", 1_790_000_009),
        ]


def test_a_renamed_file_continues_at_a_position_of_version_0_1_0(tmp_path: Path) -> None:
    log, database = tmp_path / "llama.log", tmp_path / "data" / "logs.db"
    rotated = log.with_name("llama.log.1")
    rotated.write_text(CONTENT_0_1_0 + "0.02.000.000 I srv          load:   SECRET\n")
    log.write_text("0.00.001.000 I srv  test: next run\n")
    store_position(database, str(log), FILE_POSITION_0_1_0.replace("2235454", str(rotated.stat().st_ino)))
    os.utime(log, (1_790_000_100, 1_790_000_100))
    os.utime(rotated, (1_790_000_050, 1_790_000_050))
    with file_collector(database, log) as collector:
        collector.poll()
        collector.poll()
        assert collector.messages() == ["srv          load:   ***", "srv  test: next run"]


def test_the_journal_continues_at_a_position_of_version_0_1_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cursor = json.loads(JOURNAL_POSITION_0_1_0)["cursor"]
    entries = [
        entry(cursor, 2, "0.02.000.000 I srv          load:   --api-key"),
        entry("next 1", 3, "0.02.000.000 I srv          load:   SECRET"),
        entry("next 2", 4, "[40463] 0.03.000.000 W srv  test: child again"),
    ]
    program = tmp_path / "journalctl"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nassert {f'--cursor={cursor}'!r} in sys.argv\nprint({chr(10).join(entries)!r})\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    database = tmp_path / "data" / "logs.db"
    store_position(database, "journal", JOURNAL_POSITION_0_1_0)
    with LogCollector(
        database, lambda sink, positions: JournalReader(["llama-server"], sink, positions)
    ) as collector:
        collector.poll()
        assert [tuple(row.values()) for row in collector.rows()] == [
            ("info", "srv          load:   ***", "llama-server", 1_790_000_003),
            ("warn", "srv  test: child again", "gemma-b", 1_790_000_004),
        ]


def entry(cursor: str, second: int, message: str) -> str:
    """One entry as journalctl writes it."""
    return json.dumps(
        {
            "__CURSOR": cursor,
            "__REALTIME_TIMESTAMP": str((1_790_000_000 + second) * 1_000_000),
            "MESSAGE": message,
            "PRIORITY": "6",
            "_PID": "42",
            "_SYSTEMD_UNIT": "llama-server.service",
        }
    )
