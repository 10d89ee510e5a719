"""Reads what systemd units wrote to the journal, each entry once.

`journalctl` reads in a child process: a damaged journal file can kill the process that has it mapped.
Each pass starts at the entry that was read last and drops it, which is right across reboots, filters and
vacuumed journals, where `--follow` and `--after-cursor` lose entries.

Promised: each entry that journald keeps comes into `logs` exactly once, in a row of its own or in that of
the record it belongs to. Not promised: what journald itself leaves out (its rate limit says so in a line
of its own) or has vacuumed before it was read. Of lines over 48 KiB journald makes several entries.
"""

import json
import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from types import TracebackType
from typing import Any, Self

import structlog

from collector.errors import SourceAbsent, SourceFailed
from collector.health import OK, State
from collector.logs.reader import LLAMA_SERVER, SETTLE_SECONDS, LogSink
from collector.parsers.log_lines import Record, ends_with_key_flag, parse_records, split_lines
from collector.schema import Row

PASS_ENTRIES = 20_000
"""Read in one poll at most."""

COMMIT_ENTRIES = 1000
"""As many go into the buffer together, with one position."""

SILENCE_SECONDS = 30.0
"""How long journalctl may say nothing."""

_FIELDS = "MESSAGE,PRIORITY,_PID,_SYSTEMD_UNIT,SYSLOG_IDENTIFIER"
_LEVEL_OF_PRIORITY = dict(
    zip("01234567", ["critical"] * 3 + ["error", "warn", "info", "info", "debug"], strict=True)
)
_COMPLAINT_BYTES = 4096


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry of the journal, as far as it is used.

    Args:
        cursor: its place.
        microseconds: Unix time of its arrival.
        line: the message as text.
        level: by its priority.
        writer: number of the process, and who it is: llama-server, or who speaks about the unit.
    """

    cursor: str
    microseconds: int
    line: str
    level: str
    writer: tuple[str, str]


class JournalReader:
    """The journal of some systemd units.

    Args:
        units: their names; `.service` may be left out.
        sink: where the lines go.
        positions: the stored ones, by name.
        arguments: for journalctl, to name other journal files than the system's.
    """

    name = "journal"

    def __init__(
        self,
        units: Iterable[str],
        sink: LogSink,
        positions: Mapping[str, str],
        arguments: Iterable[str] = (),
    ) -> None:
        self._units = [unit if "." in unit else f"{unit}.service" for unit in units]
        self._sink = sink
        self._arguments = list(arguments)
        stored = json.loads(positions.get(self.name, "{}"))
        self._cursor: str | None = stored.get("cursor")
        self._microseconds: int = stored.get("microseconds", 0)
        self._cursor_fits = stored.get("units") == self._units  # else our filter may hide its entry
        self._key_process: str | None = stored.get("key_process")  # whose next line is an API key
        self._models = {int(port): model for port, model in stored.get("models", {}).items()}
        self.behind = False

    def poll(self) -> State:
        """Read what has come.

        Raises:
            SourceAbsent: there is no journalctl, or no journal.
            SourceFailed: the journal may not or cannot be read.
        """
        room = min(PASS_ENTRIES, self._sink.room)
        self.behind = room == 0
        if room:
            complaint = self._pass(room)
            if self._cursor and "cursor" in complaint.lower():
                self._forget_cursor(complaint)
                complaint = self._pass(room)
            _explain(complaint)
        return OK

    def close(self) -> None:
        """Nothing is held open between two polls."""

    def _pass(self, room: int) -> str:
        """Read from the stored place on; what journalctl complained about."""
        command = ["journalctl", "--output=json", "--all", "--no-pager", f"--output-fields={_FIELDS}"]
        command += [*self._arguments, *(f"--unit={unit}" for unit in self._units)]
        if self._cursor:
            command.append(f"--cursor={self._cursor}")
        elif self._microseconds:
            seconds, microseconds = divmod(self._microseconds + 1, 1_000_000)
            command.append(f"--since=@{seconds}.{microseconds:06}")
        with _Journalctl(command) as journalctl:
            self._take(self._unread(journalctl.lines()), room)
        return journalctl.complaint

    def _unread(self, lines: Iterator[bytes]) -> Iterator[_Entry]:
        """Entries behind the stored place."""
        last_cursor = self._cursor
        for number, line in enumerate(lines):
            entry = _entry(json.loads(line), self._units)
            if number == 0 and last_cursor:
                if entry.cursor == last_cursor:
                    continue
                if self._cursor_fits:
                    _tell_gap("the entry that was read last is no longer in it")
            yield entry

    def _take(self, entries: Iterator[_Entry], room: int) -> None:
        waiting: list[_Entry] = []
        for number, entry in enumerate(entries, 1):
            waiting.append(entry)
            if number >= room:
                self.behind = True
                break
            if len(waiting) >= COMMIT_ENTRIES:
                waiting = self._put(waiting, hold=True)
        if waiting:
            self._put(waiting, hold=time.time() - waiting[-1].microseconds / 1e6 < SETTLE_SECONDS)

    def _put(self, entries: list[_Entry], *, hold: bool) -> list[_Entry]:
        """Hand entries over with the place after them.

        Args:
            entries: at least one.
            hold: whether the last record waits for more of its lines, unless it is the only one.

        Returns:
            the entries that wait; they are not handed over.
        """
        rows: list[Row] = []
        groups = [list(group) for _, group in groupby(entries, key=lambda entry: entry.writer)]
        waiting: list[_Entry] = []
        for group in groups:
            key_follows = self._key_process == group[0].writer[0]
            records = parse_records([entry.line for entry in group], key_follows=key_follows)
            if hold and records and group is groups[-1]:
                only = len(groups) == len(records) == 1
                if only and len(entries) < COMMIT_ENTRIES:
                    return entries
                if not only:
                    waiting = group[records.pop().line :]
            rows += self._rows(records, group)
        done = entries[: len(entries) - len(waiting)]
        if done:
            self._store(rows, done)
        return waiting

    def _rows(self, records: list[Record], group: list[_Entry]) -> list[Row]:
        process, speaker = group[0].writer
        for record in records:
            record.level = record.level or group[record.line].level
        if records and ends_with_key_flag(records[-1].message):
            self._key_process = process
        elif records and self._key_process == process:
            self._key_process = None
        times = [group[record.line].microseconds // 1_000_000 for record in records]
        return self._sink.rows(records, times, self._models, speaker)

    def _store(self, rows: list[Row], done: list[_Entry]) -> None:
        self._cursor, self._microseconds = done[-1].cursor, done[-1].microseconds
        self._cursor_fits = True
        position = {
            "cursor": self._cursor,
            "microseconds": self._microseconds,
            "units": self._units,
            "key_process": self._key_process,
            "models": self._models,
        }
        self._sink.put(rows, self.name, json.dumps(position), sum(len(entry.line) for entry in done))

    def _forget_cursor(self, complaint: str) -> None:
        _tell_gap(f"journalctl no longer knows the place ({complaint.strip()})")
        self._cursor = None


class _Journalctl:
    """One run of journalctl, ended with the `with` block.

    Args:
        command: with all arguments.

    Raises:
        SourceAbsent: there is no journalctl.
    """

    def __init__(self, command: list[str]) -> None:
        environment = os.environ | {"LC_ALL": "C"}  # its complaints are read
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own arguments; no shell
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
            )
        except FileNotFoundError as error:
            raise SourceAbsent(
                "there is no journalctl here: use [logs] files instead of journal_units"
            ) from error
        self.complaint = ""

    def lines(self) -> Iterator[bytes]:
        """Its JSON lines, as they come.

        Raises:
            SourceFailed: it says nothing for too long, or ends with an error.
        """
        rest = b""
        for data in self._output():
            *lines, rest = (rest + data).split(b"\n")
            yield from (line for line in lines if line.startswith(b"{"))
        if code := self._process.wait():
            self._explain_end(code)

    def _output(self) -> Iterator[bytes]:
        assert self._process.stdout
        assert self._process.stderr
        with selectors.DefaultSelector() as selector:
            for pipe in (self._process.stdout, self._process.stderr):
                selector.register(pipe, selectors.EVENT_READ)
            while selector.get_map():
                ready = selector.select(SILENCE_SECONDS)
                if not ready:
                    raise SourceFailed(f"journalctl said nothing for {SILENCE_SECONDS:.0f} seconds")
                for key, _ in ready:
                    data = os.read(key.fd, 65536)
                    if not data:
                        selector.unregister(key.fileobj)
                    elif key.fileobj is self._process.stdout:
                        yield data
                    elif len(self.complaint) < _COMPLAINT_BYTES:
                        self.complaint += data.decode("utf-8", "replace")

    def _explain_end(self, code: int) -> None:
        """An error without a word; with words, `_explain` knows more."""
        if code < 0:
            raise SourceFailed(
                f"journalctl was ended by {signal.Signals(-code).name}: a journal file may be damaged; "
                "look with journalctl --verify"
            )
        if not self.complaint:
            raise SourceFailed(f"journalctl ended with code {code} and said nothing")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe
            pipe.close()
        self._process.wait()


def _entry(value: Mapping[str, Any], units: list[str]) -> _Entry:
    own = value.get("_SYSTEMD_UNIT") in units
    speaker = LLAMA_SERVER if own else str(value.get("SYSLOG_IDENTIFIER") or "systemd")
    return _Entry(
        value["__CURSOR"],
        int(value["__REALTIME_TIMESTAMP"]),
        "\n".join(split_lines(_bytes_of(value.get("MESSAGE")) + b"\n")),
        _LEVEL_OF_PRIORITY.get(str(value.get("PRIORITY")), "info"),
        (str(value.get("_PID")), speaker),
    )


def _bytes_of(message: object) -> bytes:
    """Text; or byte values, where it is not printable; or a list of such, where the field stands twice."""
    if isinstance(message, str):
        return message.encode("utf-8", "replace")
    if not isinstance(message, list):
        return b""
    if all(isinstance(value, int) for value in message):
        return bytes(message)
    return b"\n".join(map(_bytes_of, message))


def _explain(complaint: str) -> None:
    if _NOT_PERMITTED(complaint):
        raise SourceFailed(
            "the journal may not be read: add the user of the collector to the group systemd-journal "
            "(usermod -aG systemd-journal USER) and restart it"
        )
    if "No journal files were found" in complaint:
        raise SourceAbsent("there is no journal here: use [logs] files instead of journal_units")
    if complaint.strip():
        raise SourceFailed(f"journalctl: {complaint.strip()}")


_NOT_PERMITTED = re.compile(
    "permission denied|insufficient permissions|not seeing messages from other users", re.IGNORECASE
).search


def _tell_gap(reason: str) -> None:
    structlog.get_logger().warning(
        f"the journal was vacuumed or replaced: {reason}. Reading goes on with the next entry that is "
        "there; entries in between may be missing"
    )
