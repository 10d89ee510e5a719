"""The journal: every entry once, whoever wrote it and however long it is, in bounded memory."""

import os
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from collector.database.buffer import Buffer
from collector.errors import SourceFailed
from collector.health import OK
from collector.logs.journal import journalctl
from collector.logs.journal.entries import Entry, parse_entries, parse_entry, read_entry
from collector.logs.journal.reader import JournalReader
from collector.logs.journal.units import Unit
from collector.logs.reader import LogSink
from collector.parsers.log.record import CUT_MARK, MAX_LINE_BYTES
from tests.support.journal_files import UNIT, entry, journal_collector, write_journal
from tests.support.log_reading import LogCollector

Open = Callable[..., LogCollector]

UNITS = [Unit.parse(UNIT)]


@pytest.fixture
def journals(tmp_path: Path) -> Path:
    directory = tmp_path / "journal"
    directory.mkdir()
    return directory


@pytest.fixture
def open_collector(tmp_path: Path, journals: Path) -> Open:
    return lambda *units: journal_collector(tmp_path / "data" / "journal.db", journals, *units)


# What entries become


def parsed(*entries: Entry) -> list[tuple[str, str, str]]:
    """Return writer, level and message of the records."""
    result = parse_entries(list(entries), None, newest_may_continue=False, must_advance=False)
    return [
        (group.writer_name, str(record.level), record.message)
        for group in result.groups
        for record in group.records
    ]


def made(message: str, number: int = 0, **fields: str) -> Entry:
    values = {"_SYSTEMD_UNIT": UNIT, "_PID": "42", "PRIORITY": "6", **fields}
    return parse_entry(
        {"__CURSOR": f"c{number}{message}", "__REALTIME_TIMESTAMP": "1", "MESSAGE": message, **values}, UNITS
    )


def of_systemd(message: str, priority: int) -> Entry:
    return made(
        f"{UNIT}: {message}",
        _SYSTEMD_UNIT="init.scope",
        _PID="1",
        PRIORITY=str(priority),
        SYSLOG_IDENTIFIER="systemd",
    )


def test_an_entry_of_several_lines_and_an_unprefixed_one_are_both_stored() -> None:
    assert parsed(made("build info\n  of two lines"), made("plain text")) == [
        ("llama-server", "info", "build info\n  of two lines"),
        ("llama-server", "info", "plain text"),
    ]


def test_a_death_that_only_systemd_tells_of_is_an_error_and_each_of_its_messages_a_row() -> None:
    rows = parsed(
        of_systemd("A process of this unit has been killed by the OOM killer.", 5),
        of_systemd("Main process exited, code=killed, status=9/KILL", 5),
        of_systemd("Failed with result 'oom-kill'.", 4),
        of_systemd("Scheduled restart job, restart counter is at 1.", 6),
    )
    assert [(writer, level) for writer, level, _ in rows] == [
        ("systemd", "critical"),
        ("systemd", "critical"),
        ("systemd", "critical"),
        ("systemd", "info"),
    ]


# Which entries are read

SOURCES = {
    "a unit of the system": ("llama-server", {}, "llama-server"),
    "a unit of a user": (
        "llama-server",
        {
            "_SYSTEMD_UNIT": "user@1000.service",
            "_SYSTEMD_USER_UNIT": UNIT,
            "_UID": "1000",
            "SYSLOG_IDENTIFIER": "llama-server",
        },
        "llama-server",
    ),
    "the manager of a user about it": (
        "llama-server",
        {"_SYSTEMD_UNIT": "user@1000.service", "USER_UNIT": UNIT, "SYSLOG_IDENTIFIER": "systemd"},
        "systemd",
    ),
    "a container of podman": (
        "container:systemd-llama",
        {"_SYSTEMD_UNIT": "libpod-1b2c3d.scope", "CONTAINER_NAME": "systemd-llama"},
        "llama-server",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", SOURCES)
def test_lines_of_whatever_ran_the_server_are_read(journals: Path, open_collector: Open, case: str) -> None:
    name, fields, source = SOURCES[case]
    other = {"_SYSTEMD_UNIT": "other.service", "_SYSTEMD_USER_UNIT": "x.service", "CONTAINER_NAME": "other"}
    write_journal(
        journals / "a.journal",
        [entry("0.00.001.000 I srv  a: one", 1, **fields), entry("0.00.002.000 I srv  b: no", 2, **other)],
    )
    with open_collector(name) as collector:
        assert collector.poll() == OK or source == "systemd"
        assert [(row["message"], row["source"]) for row in collector.rows()] == [("srv  a: one", source)]


@pytest.mark.slow
def test_a_unit_that_has_written_nothing_is_named_until_it_writes(
    journals: Path, open_collector: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collector.logs.journal.reader.SILENCE_CHECK_SECONDS", 0.0)
    write_journal(journals / "a.journal", [entry("0.00.001.000 I srv  a: one", 1)])
    with open_collector(UNIT, "quadlet") as collector:
        state = collector.poll()
        assert (state.name, state.success) == ("ok", True)
        assert state.message.startswith("quadlet.service: the journal contains no entry of it")
        assert "container:NAME" in state.message
        write_journal(
            journals / "a.journal", [entry("0.00.001.000 I srv  a: x", 2, _SYSTEMD_UNIT="quadlet.service")]
        )
        assert collector.poll() == OK


# Memory


def fake_journalctl(directory: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    program = directory / "journalctl"
    program.write_text(f"#!{sys.executable}\n{code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")


ENTRIES = """
import json, sys
def entry(n, message):
    return json.dumps({"__CURSOR": f"c{n}", "__REALTIME_TIMESTAMP": str(1790000000000000 + n), "MESSAGE": message,
                       "PRIORITY": "6", "_PID": "42", "_SYSTEMD_UNIT": "llama-server.service"})
"""


def peak_mb(action: Callable[[], object]) -> float:
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


def test_a_backlog_of_long_lines_is_read_in_bounded_memory(
    open_collector: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_journalctl(
        tmp_path,
        monkeypatch,
        ENTRIES
        + """
cursor = next((a.split("=")[1] for a in sys.argv if a.startswith("--cursor=")), "c0")
for n in range(int(cursor[1:]), 600):
    sys.stdout.write(entry(n, f"0.00.001.000 I srv  line {n}: " + "x" * 40_000) + "\\n")
""",
    )
    with open_collector() as collector:

        def read_all() -> None:
            collector.poll()
            while collector.reader.has_more:
                collector.poll()

        assert peak_mb(read_all) < 25  # 24 MB of text
        assert len(collector.rows()) == 600


@pytest.mark.parametrize("form", ["text", "bytes", "text before the fields"])
def test_of_an_entry_of_20_mb_only_the_beginning_is_read(
    open_collector: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    size = 20 * 2**20
    message = {"text": f"'{'q'}' * {size}", "bytes": f"[1] * 3 + [113] * {size // 4}"}.get(
        form, f"'q' * {size}"
    )
    reorder = "fields = {'MESSAGE': fields.pop('MESSAGE'), **fields}" if form.endswith("fields") else ""
    fake_journalctl(
        tmp_path,
        monkeypatch,
        ENTRIES
        + f"""
print(entry(1, "0.00.001.000 I srv  a: before"))
fields = json.loads(entry(2, {message}))
{reorder}
print(json.dumps(fields))
print(entry(3, "0.00.003.000 I srv  a: after"))
""",
    )
    with open_collector() as collector:
        assert peak_mb(collector.poll) < 12
        before, long, after = collector.messages()
    assert (before, after) == ("srv  a: before", "srv  a: after")
    assert long.endswith(CUT_MARK)
    assert MAX_LINE_BYTES / 2 < long.count("q") <= MAX_LINE_BYTES


@pytest.mark.parametrize(
    "message", ['a\\"b', "\\u00e9", "\\ud83d\\ude00", "\\\\", 'x\\",\\"__CURSOR\\":\\"forged\\",\\"']
)
def test_an_overlong_message_may_end_within_any_escape_and_forges_no_field(message: str) -> None:
    for cut in range(len(message)):
        begin = f'{{"__CURSOR":"c","__REALTIME_TIMESTAMP":"5","MESSAGE":"text {message[:cut]}'
        end = f'{message[cut:]}{message}","_PID":"7","_SYSTEMD_UNIT":"{UNIT}"}}'
        fields = read_entry(begin.encode() + journalctl.CUT + end.encode())
        assert (fields["__CURSOR"], fields["_PID"], fields["_SYSTEMD_UNIT"]) == ("c", "7", UNIT)
        assert fields["MESSAGE"].startswith("text")
        assert fields["MESSAGE"].endswith(CUT_MARK)


@pytest.mark.slow
def test_a_real_entry_of_20_mb_beside_lines_is_stored_once(journals: Path, open_collector: Open) -> None:
    big = b"\x01\xff" * (5 * 2**20)
    write_journal(
        journals / "a.journal",
        [
            entry("0.00.001.000 I srv  a: one", 1),
            entry(big, 2, _PID="43"),
            entry("0.00.003.000 I srv  a: two", 3),
        ],
    )
    with open_collector() as collector:
        assert peak_mb(collector.poll) < 15
        collector.poll()
        messages = collector.messages()
    assert (messages[0], messages[-1], len(messages)) == ("srv  a: one", "srv  a: two", 3)
    with open_collector() as collector:
        collector.poll()
        assert len(collector.messages()) == 3


@pytest.mark.parametrize(
    ("message", "text"),
    [("text", "text"), ([104, 105, 255], "hi\ufffd"), (["a", [98, 99]], "a\nbc"), (None, ""), (5, "")],
)
def test_a_message_is_text_in_whatever_form_journalctl_writes_it(message: object, text: str) -> None:
    value = {"__CURSOR": "c", "__REALTIME_TIMESTAMP": "1", "MESSAGE": message}
    assert parse_entry(value, UNITS).line == text


def test_a_unit_or_container_is_recognized_by_what_only_it_writes() -> None:
    assert Unit.parse("llama").wrote({"_SYSTEMD_UNIT": "llama.service"})
    assert Unit.parse("llama.service").wrote({"_SYSTEMD_USER_UNIT": "llama.service"})
    assert not Unit.parse("llama").wrote({"UNIT": "llama.service", "CONTAINER_NAME": "llama.service"})
    assert Unit.parse("container:llama").wrote({"CONTAINER_NAME": "llama", "_SYSTEMD_UNIT": "x.scope"})
    assert not Unit.parse("container:llama").wrote({"_SYSTEMD_UNIT": "llama"})


def test_a_journalctl_that_a_damaged_file_kills_is_named_with_its_signal(
    open_collector: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_journalctl(tmp_path, monkeypatch, "import os; os.kill(os.getpid(), 7)")
    with open_collector() as collector, pytest.raises(SourceFailed, match=r"ended by SIGBUS.*--verify"):
        collector.poll()


def test_while_the_buffer_is_full_there_is_more(open_collector: Open) -> None:
    with open_collector() as collector:
        reader = JournalReader([UNIT], LogSink(Buffer(line_capacity=0)), {})
        assert reader.poll() == OK
        assert reader.has_more is True
        assert collector.rows() == []


def test_all_silent_units_are_named(
    open_collector: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_journalctl(
        tmp_path,
        monkeypatch,
        ENTRIES + "if not any('=' in a and a[0] == '_' for a in sys.argv): print(entry(1, 'of another'))",
    )
    with open_collector("one", "two") as collector:
        assert collector.poll().message.startswith("one.service, two.service: the journal contains no entry")
