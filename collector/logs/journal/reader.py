"""Reads what systemd units wrote to the journal, each entry once.

Each poll runs `journalctl` once, from the entry that was read last: `--cursor` includes that entry, which is
dropped. `--after-cursor` and `--follow` seem simpler, but lose entries: the first where the filter does not
match the cursor's own entry, the second after a restart of the machine.

What is guaranteed: each entry that journald keeps is stored in `logs` exactly once, in a row of its own or in
that of the record it belongs to.

What cannot be guaranteed: entries that journald itself drops (its rate limit, reported in an entry) or
has vacuumed before they were read. Of a line over 48 KiB journald makes several entries.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Self

import structlog

from collector.errors import ParseError
from collector.health import OK, State
from collector.logs.journal.entries import Entry, parse_entries, parse_entry, read_entry
from collector.logs.journal.journalctl import Journalctl, is_about_cursor, raise_error
from collector.logs.journal.units import Unit, all_matches
from collector.logs.position import Models
from collector.logs.reader import LLAMA_SERVER, SETTLE_SECONDS, LogSink
from collector.logs.rows.requests import JOURNAL
from collector.logs.rows.router_events import LogOfRouter
from collector.parsers.requests.tracker import RequestTracker
from collector.schema import Row, Write

_REQUESTS_NAME = "journal requests"
"""Name of the row of `log_positions` with the open requests: version 0.1.0 cannot read them in `journal`."""

POLL_ENTRIES = 20_000
"""Entries read in one poll at most."""

POLL_BYTES = 4 * 2**20
"""Text read in one poll at most: entries may have 48 KiB each."""

COMMIT_ENTRIES = 1000
"""Entries added to the buffer together, with one position."""

COMMIT_BYTES = 2**20
"""Text added to the buffer together, about."""

SILENCE_CHECK_SECONDS = 300.0
"""How often it is checked which units have written nothing yet."""


@dataclass(frozen=True, slots=True)
class JournalPosition:
    """How far the journal was read. The format is that of version 0.1.0.

    The field names are the keys of the stored JSON.

    Args:
        cursor: of the entry that was read last; None where nothing was read, or journalctl refused it.
        microseconds: Unix time of that entry; 0 where nothing was read.
        units: whose entries were read. For other units, the entry of the cursor may not match the filter.
        key_process: process whose next line is an API key.
        models: of the router's children, by port.
    """

    cursor: str | None = None
    microseconds: int = 0
    units: Sequence[str] = ()
    key_process: str | None = None
    models: Models = field(default_factory=dict)

    @classmethod
    def from_json(cls, stored: str) -> Self:
        """Return the position that `to_json` returned this text for."""
        value = json.loads(stored)
        models = {int(port): model for port, model in value.pop("models", {}).items()}
        return cls(**value, models=models)

    def to_json(self) -> str:
        """Return the text that is stored in `log_positions.position`."""
        return json.dumps(asdict(self))


_NO_ENTRY = (
    "the journal contains no entry of it that this user may read. Is that the unit's name (systemctl "
    'list-units)? Where a container writes to the journal, name it: journal_units = ["container:NAME"]'
)


class JournalReader:
    """The journal of some systemd units.

    Args:
        units: their names, see `Unit.parse`.
        sink: where the lines go.
        positions: the stored ones, by name.
        arguments: for journalctl, to name other journal files than those of the system.
    """

    name = "journal"

    def __init__(
        self,
        units: Iterable[str],
        sink: LogSink,
        positions: Mapping[str, str],
        arguments: Iterable[str] = (),
    ) -> None:
        self._units = [Unit.parse(unit) for unit in units]
        self._unit_names = [unit.name for unit in self._units]
        self._silent = list(self._units)
        self._silence_checked_at = float("-inf")
        self._sink = sink
        self._arguments = list(arguments)
        self._position = JournalPosition.from_json(positions.get(self.name, "{}"))
        self._requests = RequestTracker.from_json(positions.get(_REQUESTS_NAME, "{}"))
        self._silence = ""
        self.has_more = False

    def poll(self) -> State:
        """Read what was added since the last poll.

        Raises:
            SourceAbsent: there is no journalctl, or no journal.
            SourceFailed: the journal cannot be read.
        """
        room = min(POLL_ENTRIES, self._sink.room)
        self.has_more = room == 0
        if room:
            error_text = self._read(room)
            if self._position.cursor and is_about_cursor(error_text):
                # Without the cursor, reading continues at the time of the entry that was read last.
                _warn_of_gap(f"journalctl does not accept the position ({error_text.strip()})")
                self._position = replace(self._position, cursor=None)
                error_text = self._read(room)
            raise_error(error_text)
        if self._silent and not self.has_more:
            self._check_silence()
        return State("ok", self._silence) if self._silence else OK

    def _check_silence(self) -> None:
        """Find out which units have not written a single entry, at most every `SILENCE_CHECK_SECONDS`."""
        now = time.monotonic()
        if now - self._silence_checked_at < SILENCE_CHECK_SECONDS:
            return
        self._silence_checked_at = now
        if self._is_empty([]):
            return  # a journal without any entry says nothing about a unit
        self._silent = [unit for unit in self._silent if self._is_empty(unit.own_matches)]
        names = ", ".join(unit.name for unit in self._silent)
        self._silence = f"{names}: {_NO_ENTRY}" if names else ""

    def _is_empty(self, matches: Sequence[str]) -> bool:
        """Return whether the journal contains no entry with these matches that this user may read."""
        with Journalctl([*self._arguments, "--lines=1", "--quiet", *matches]) as journalctl:
            return not any(True for _ in journalctl.lines())

    def finish(self) -> None:
        """Give the sink the requests that wait for further lines: no more are read."""
        self._sink.requests(self._requests.end(), self._position.models, JOURNAL)

    def close(self) -> None:
        """Do nothing: no process and no file is open between two polls."""

    def _read(self, room: int) -> str:
        """Store the entries after the position, at most `room`; return journalctl's standard error."""
        arguments = [*self._arguments, *all_matches(self._units)]
        if self._position.cursor:
            arguments.append(f"--cursor={self._position.cursor}")
        elif self._position.microseconds:
            seconds, microseconds = divmod(self._position.microseconds + 1, 1_000_000)
            arguments.append(f"--since=@{seconds}.{microseconds:06}")
        with Journalctl(arguments) as journalctl:
            waiting: list[Entry] = []
            read_bytes = waiting_bytes = 0
            for number, entry in enumerate(self._entries_after_position(journalctl.lines()), 1):
                waiting.append(entry)
                read_bytes += len(entry.line)
                waiting_bytes += len(entry.line)
                if number >= room or read_bytes >= POLL_BYTES:
                    self.has_more = True
                    break
                if len(waiting) >= COMMIT_ENTRIES or waiting_bytes >= COMMIT_BYTES:
                    waiting = self._store(waiting, newest_may_continue=True)
                    waiting_bytes = sum(len(entry.line) for entry in waiting)
            if waiting:
                age_seconds = time.time() - waiting[-1].microseconds / 1e6
                self._store(waiting, newest_may_continue=age_seconds < SETTLE_SECONDS)
        return journalctl.error_text

    def _entries_after_position(self, lines: Iterator[bytes]) -> Iterator[Entry]:
        """Yield the entries that journalctl writes, without the one that was read last."""
        position = self._position
        for number, line in enumerate(lines):
            try:
                entry = parse_entry(read_entry(line), self._units)
            except ParseError as error:
                structlog.get_logger().warning(f"an entry of the journal cannot be read: {error}")
                continue
            if number == 0 and position.cursor:
                if entry.cursor == position.cursor:
                    continue
                if position.units == self._unit_names:  # with other units, the filter may exclude that entry
                    _warn_of_gap("the entry that was read last is no longer in it")
            yield entry

    def _store(self, entries: list[Entry], *, newest_may_continue: bool) -> list[Entry]:
        """Add the records of entries to the buffer, with the position after them.

        Returns:
            the entries whose record may continue in the next entry. They are stored with the following
            ones, or read again by the next poll.
        """
        parsed = parse_entries(
            entries,
            self._position.key_process,
            newest_may_continue=newest_may_continue,
            must_advance=_is_full(entries),
        )
        if not parsed.complete:
            return parsed.incomplete
        rows: list[Row] = []
        others: list[Write] = []
        models = self._position.models
        for group in parsed.groups:
            log = LogOfRouter(self.name, is_live=True)  # each entry has its time
            others.append(self._sink.router_events(group.records, group.moments, models, log))
            added, models = self._sink.rows(group.records, group.times, models, group.writer_name)
            rows += added
            if group.writer_name == LLAMA_SERVER:
                ended = self._requests.add(group.records, group.moments)
                others.append(self._sink.requests(ended, models, JOURNAL))
        last = parsed.complete[-1]
        self._position = JournalPosition(
            last.cursor,
            last.microseconds,
            self._unit_names,
            parsed.key_process,
            models,
        )
        size_bytes = sum(len(entry.line) for entry in parsed.complete)
        self._sink.put(
            rows,
            {self.name: self._position.to_json(), _REQUESTS_NAME: json.dumps(self._requests.to_store())},
            size_bytes,
            others,
        )
        return parsed.incomplete


def _is_full(entries: Sequence[Entry]) -> bool:
    """Return whether so many entries wait that they are to be stored."""
    return len(entries) >= COMMIT_ENTRIES or sum(len(entry.line) for entry in entries) >= COMMIT_BYTES


def _warn_of_gap(reason: str) -> None:
    """Warn that entries between the last one that was read and the next one may be missing."""
    structlog.get_logger().warning(
        f"the journal was vacuumed or replaced: {reason}. Reading continues with the next entry that exists; "
        "entries in between may be missing"
    )
