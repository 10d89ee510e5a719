"""The scan: every model of the models directories gets its row, every model that is gone loses it."""

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog

from collector.database import Database
from collector.errors import Stopped
from collector.models.header_reader import Answer, HeaderReader
from collector.models.inventory import (
    Inventory,
    describes_model,
    is_unchanged,
    shown_path,
    take_inventory,
)
from collector.models.matching import RowChanges, match_rows
from collector.models.missing import Missing, gone_models, missing_files
from collector.models.mounts import Mounts
from collector.models.records import (
    MODEL_FILES,
    FileRecord,
    Remembered,
    is_storable,
    remembered,
    store_records,
)
from collector.models.walk import FoundFile, Walk, walk_models

__all__ = ["MODEL_FILES", "SCAN_TIME_KEY", "SUMMARY_KEY", "ModelScan", "ScanSummary"]

SCAN_TIME_KEY = "lastScanTime"
"""In `metadata`: Unix seconds of the last complete scan."""

SUMMARY_KEY = "lastScanSummary"
"""In `metadata`: the fields of its `ScanSummary`."""

Progress = Callable[[int, int, str], None]
"""Takes how many files were read, how many there are to read, and which one is next."""


@dataclass(frozen=True, slots=True)
class ScanSummary:
    """What a scan found.

    Args:
        found: models that lie in the directories.
        added: models that got a row.
        changed: models whose row changed.
        removed: models whose file is gone and whose row was removed.
        unreadable: files that are broken, or could not be read this time.
        waiting: files left for the next scan: they are still being written, or could not be read.
        seconds: how long the scan took.
        complete: False where it was ended early; then nothing was removed.
    """

    found: int = 0
    added: int = 0
    changed: int = 0
    removed: int = 0
    unreadable: int = 0
    waiting: int = 0
    seconds: float = 0.0
    complete: bool = False


class ModelScan:
    """Keeps `models` in step with some directories.

    Args:
        database: opened with `MODEL_FILES` among its tables.
        directories: absolute, scanned with all that is below.
    """

    def __init__(self, database: Database, directories: Sequence[Path]) -> None:
        self._database = database
        self._directories = tuple(directories)
        self._log = structlog.get_logger()
        self._told: set[str] = set()
        self._slow: set[str] = set()  # paths that gave no answer in time: asked last

    def run(self, progress: Progress | None = None, stop: threading.Event | None = None) -> ScanSummary:
        """Scan once. No file, whatever it holds, makes it fail.

        Args:
            progress: is told of every file before it is read, and of the end.
            stop: ends the scan early when set; what was read until then is kept, nothing is removed.

        Raises:
            SourceFailed: headers cannot be read at all.
            DatabaseBusy: another program holds a lock; nothing was written.
            DatabaseError: the database cannot be read or written.
        """
        started = time.monotonic()
        stop = stop or threading.Event()
        mounts = Mounts.now()
        walk = walk_models(self._directories, mounts, stop)
        if not walk.complete:
            return ScanSummary(seconds=time.monotonic() - started)
        known = remembered(self._database)
        unread = [f for f in walk.files.values() if _is_to_be_read(f, known)]
        answers = self._read(unread, progress or _no_progress, stop)
        finished = not stop.is_set() and all(f.path in answers or f.path in self._slow for f in unread)
        if unread:
            known = remembered(self._database)  # reading took its time, and the server may have added rows

        now_ns = time.time_ns()
        inventory = take_inventory(walk, answers, known.records, now_ns)
        missing = missing_files(walk, known.records, mounts) if finished else Missing()
        rows = match_rows(inventory, answers, known, missing.gone, now_ns // 10**9)
        if finished:
            rows.removed = gone_models(walk, missing, known, rows.in_use)
        summary = _summary(inventory, rows, time.monotonic() - started, complete=finished)
        changed = [record for path, record in inventory.records.items() if record != known.records.get(path)]
        self._store(rows, changed, missing.gone, summary)
        self._tell(inventory.news, [*_faults(walk), *inventory.unreadable, *missing.conditions], summary)
        return summary

    def _read(self, unread: list[FoundFile], progress: Progress, stop: threading.Event) -> dict[str, Answer]:
        """Answers by path; none on the files that were not reached."""
        answers: dict[str, Answer] = {}
        with HeaderReader(stop) as reader:
            for done, found in enumerate(sorted(unread, key=lambda f: (f.path in self._slow, f.found_at))):
                progress(done, len(unread), found.found_at)
                try:
                    answer = _read_one(reader, found)
                except Stopped:
                    break
                answers[found.path] = answer
                if answer.timed_out:  # a disk that hangs would hold up every file in turn
                    self._slow.add(found.path)
                    break
                self._slow.discard(found.path)
        progress(len(answers), len(unread), "")
        return answers

    def _store(
        self, rows: RowChanges, records: Iterable[FileRecord], gone: Iterable[str], summary: ScanSummary
    ) -> None:
        with self._database.transaction():
            for row in rows.inserted:
                self._database.models.save(row)
            for row_id, columns in rows.updated.items():
                self._database.models.update(row_id, columns)
            for row_id in rows.removed:
                self._database.models.delete(row_id)
            store_records(self._database, records, gone)
            if summary.complete:
                self._database.meta.set(SCAN_TIME_KEY, int(time.time()))
                self._database.meta.set(SUMMARY_KEY, asdict(summary))

    def _tell(self, news: Iterable[str], conditions: Sequence[str], summary: ScanSummary) -> None:
        """News once; a condition when it becomes true, and again when it does after an end."""
        for sentence in (*news, *(c for c in dict.fromkeys(conditions) if c not in self._told)):
            self._log.warning(f"models: {sentence}")
        self._told = set(conditions)
        counts = {"added": summary.added, "changed": summary.changed, "removed": summary.removed}
        if any(counts.values()):
            changes = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
            self._log.info(f"models: {changes}")


def _is_to_be_read(found: FoundFile, known: Remembered) -> bool:
    record = known.records.get(found.path)
    if record is None or not is_unchanged(found, record):
        return True
    return describes_model(record) and record.model_id not in known.models  # somebody removed its row


def _summary(inventory: Inventory, rows: RowChanges, seconds: float, *, complete: bool) -> ScanSummary:
    return ScanSummary(
        found=len(inventory.models),
        added=len(rows.inserted),
        changed=len(rows.updated),
        removed=len(rows.removed),
        unreadable=inventory.broken + len(inventory.unreadable),
        waiting=len(inventory.waiting),
        seconds=round(seconds, 3),
        complete=complete,
    )


def _read_one(reader: HeaderReader, found: FoundFile) -> Answer:
    if not is_storable(found.found_at):
        return Answer(
            "broken", "has a name that is not UTF-8, which the database cannot hold: rename it", foreign=True
        )
    if not os.access(found.found_at, os.R_OK):
        return Answer("unreadable", "may not be read by this user: change its owner or mode")
    return reader.read(found.found_at)


def _faults(walk: Walk) -> list[str]:
    return [
        f"{shown_path(path)} cannot be read ({reason}): what is known of the files there is kept"
        for path, reason in walk.faults.items()
    ]


def _no_progress(_done: int, _total: int, _path: str) -> None:
    pass
