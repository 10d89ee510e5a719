"""The scan: brings `models` up to date with the files in the models directories.

Each stage returns a result that later stages read, and changes nothing else. Only the last one writes:
walk → read headers → classify files → find missing files → match rows → find removed rows → store.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import structlog

from collector.database import Database
from collector.errors import Stopped
from collector.models.header_reader import READER_VERSION, Answer, HeaderReader
from collector.models.inventory import classify_files, printable_path
from collector.models.matching import RowChanges, match_rows
from collector.models.missing import MissingFiles, RemovedRows, find_missing_files, find_removed_rows
from collector.models.mounts import Mounts
from collector.models.storage import (
    MODEL_FILES,
    ModelFile,
    StoredInventory,
    is_utf8,
    read_inventory,
    store_files,
)
from collector.models.walk import FoundFile, Walk, walk_models

__all__ = ["MODEL_FILES", "SCAN_TIME_KEY", "SUMMARY_KEY", "ModelScan", "ScanSummary"]

SCAN_TIME_KEY = "lastScanTime"
"""Key in `metadata`: Unix seconds of the last complete scan."""

SUMMARY_KEY = "lastScanSummary"
"""Key in `metadata`: the fields of its `ScanSummary`."""

READER_VERSION_KEY = "modelReaderVersion"
"""Key in `metadata`: the `READER_VERSION` that has read every file that is not a model."""

_MAX_SKIPPED_SCANS = 64

Progress = Callable[[int, int, str], None]
"""Is called with how many files were read, how many are to be read, and the path of the next one."""


@dataclass(frozen=True, slots=True)
class ScanSummary:
    """Result of a scan.

    Args:
        found: models in the directories.
        added: models that got a row.
        changed: models whose row changed.
        removed: models whose file is gone and whose row was deleted.
        unreadable: files that are broken, or could not be read this time.
        waiting: files left for the next scan: still being written, or not readable at the moment.
        seconds: how long the scan took.
        complete: False if it was stopped early; then no row was deleted.
    """

    found: int = 0
    added: int = 0
    changed: int = 0
    removed: int = 0
    unreadable: int = 0
    waiting: int = 0
    seconds: float = 0.0
    complete: bool = False


@dataclass(frozen=True, slots=True)
class _Headers:
    """Contents of the files that were read.

    Args:
        answers: by path; none for the files that were not reached.
        timed_out: paths of files that could not be read in time, in this scan or an earlier one.
    """

    answers: Mapping[str, Answer]
    timed_out: AbstractSet[str]


@dataclass(frozen=True, slots=True)
class _Changes:
    """Result of the comparison of the files with the database.

    Args:
        rows: new and changed rows of `models`.
        removed_ids: ids of the rows of `models` to be deleted.
        files: new and changed rows of `model_files`.
        gone: paths of the rows of `model_files` to be deleted.
        messages: sentences to be logged.
        conditions: sentences to be logged unless the last scan has found the same.
        summary: the counts; without the duration.
    """

    rows: RowChanges
    removed_ids: Sequence[str]
    files: Sequence[ModelFile]
    gone: Iterable[str]
    messages: Sequence[str]
    conditions: Sequence[str]
    summary: ScanSummary


@dataclass(slots=True)
class _Failure:
    """A file that ended the process that read it, or exceeded its limits.

    Args:
        file: as it was then; a changed file is read at once.
        answer: of the last attempt.
        skipped: in how many scans it was not read since.
        to_skip: how many scans it is not read after the last attempt; doubles with each, because an attempt
            may cost 20 s of a processor.
    """

    file: FoundFile
    answer: Answer
    skipped: int = 0
    to_skip: int = 0


class ModelScan:
    """Keeps `models` up to date with the files in some directories.

    Args:
        database: opened with `MODEL_FILES` among its tables.
        directories: absolute; their subdirectories are scanned as well.
    """

    def __init__(self, database: Database, directories: Sequence[Path]) -> None:
        self._database = database
        self._directories = tuple(directories)
        self._log = structlog.get_logger()
        self._logged_conditions: AbstractSet[str] = frozenset()
        self._timed_out: AbstractSet[str] = frozenset()
        self._failures: dict[str, _Failure] = {}

    def run(self, progress: Progress | None = None, stop: threading.Event | None = None) -> ScanSummary:
        """Scan once. No content of a file makes it fail.

        Args:
            progress: is called before each file is read, and at the end.
            stop: stops the scan early when set; what was read until then is stored, no row is deleted.

        Raises:
            SourceFailed: the process that reads headers cannot be started.
            DatabaseBusy: another program holds a lock; nothing was written.
            DatabaseError: the database cannot be read or written.
        """
        started = time.monotonic()
        stop = stop or threading.Event()
        mounts = Mounts.now()
        walk = walk_models(self._directories, mounts, stop)
        if not walk.complete:
            return ScanSummary(seconds=time.monotonic() - started)
        stored = read_inventory(self._database)
        retried = self._database.meta.get(READER_VERSION_KEY) != READER_VERSION
        unread = [
            found
            for path, found in walk.files.items()
            if path not in walk.downloading and not stored.is_current(found, retried=retried)
        ]
        headers = self._read_headers(unread, progress, stop)
        self._timed_out = headers.timed_out
        complete = not stop.is_set() and all(
            found.path in headers.answers or found.path in headers.timed_out for found in unread
        )
        if unread:
            stored = read_inventory(self._database)  # llama-server's source may have added rows meanwhile
        changes = _compare(walk, headers.answers, stored, mounts, complete=complete)
        summary = replace(changes.summary, seconds=round(time.monotonic() - started, 3))
        self._store(changes, summary)
        self._logged_conditions = self._log_changes(changes)
        return summary

    def _read_headers(
        self, unread: Sequence[FoundFile], progress: Progress | None, stop: threading.Event
    ) -> _Headers:
        """Read the headers of files, until one cannot be read in time.

        A hanging disk would delay the scan by the timeout for every file on it. The files that timed out in
        an earlier scan are therefore read last, and the first timeout ends the stage: the other files are
        read in the next scan.
        """
        answers: dict[str, Answer] = {}
        timed_out = set(self._timed_out)
        with HeaderReader(stop) as reader:
            for done, found in enumerate(sorted(unread, key=lambda f: (f.path in timed_out, f.found_at))):
                if progress:
                    progress(done, len(unread), found.found_at)
                try:
                    answer = self._read_header(reader, found)
                except Stopped:
                    break
                answers[found.path] = answer
                if answer.timed_out:
                    timed_out.add(found.path)
                    break
                timed_out.discard(found.path)
        if progress:
            progress(len(answers), len(unread), "")
        return _Headers(answers, timed_out)

    def _read_header(self, reader: HeaderReader, found: FoundFile) -> Answer:
        """Read the header of a file, unless it is known that it cannot be read.

        Raises:
            Stopped: the scan is to stop.
        """
        if not is_utf8(found.found_at):
            reason = "has a name that is not UTF-8, which the database cannot store: rename it"
            return Answer("broken", reason, foreign=True)
        if not os.access(found.found_at, os.R_OK):
            return Answer("unreadable", "may not be read by this user: change its owner or mode")
        failure = self._failures.get(found.path)
        if failure and failure.file == found and failure.skipped < failure.to_skip:
            failure.skipped += 1
            return failure.answer
        answer = reader.read(found.found_at)
        if not answer.over_limit:
            self._failures.pop(found.path, None)
        else:
            to_skip = min(2 * failure.to_skip or 1, _MAX_SKIPPED_SCANS) if failure else 0
            self._failures[found.path] = _Failure(found, answer, to_skip=to_skip)
        return answer

    def _store(self, changes: _Changes, summary: ScanSummary) -> None:
        """Write all changes in one transaction."""
        with self._database.transaction():
            for row in changes.rows.inserted:
                self._database.models.save(row)
            for row_id, columns in changes.rows.updated.items():
                self._database.models.update(row_id, columns)
            for row_id in changes.removed_ids:
                self._database.models.delete(row_id)
            store_files(self._database, changes.files, changes.gone)
            if summary.complete:
                self._database.meta.set(SCAN_TIME_KEY, int(time.time()))
                self._database.meta.set(SUMMARY_KEY, asdict(summary))
                self._database.meta.set(READER_VERSION_KEY, READER_VERSION)

    def _log_changes(self, changes: _Changes) -> AbstractSet[str]:
        """Log messages, new conditions and the counts of changed rows; return all conditions."""
        new = [c for c in dict.fromkeys(changes.conditions) if c not in self._logged_conditions]
        for sentence in (*changes.messages, *new):
            self._log.warning(f"models: {sentence}")
        summary = changes.summary
        counts = {"added": summary.added, "changed": summary.changed, "removed": summary.removed}
        if any(counts.values()):
            text = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
            self._log.info(f"models: {text}")
        return frozenset(changes.conditions)


def _compare(
    walk: Walk,
    answers: Mapping[str, Answer],
    stored: StoredInventory,
    mounts: Mounts,
    *,
    complete: bool,
) -> _Changes:
    """Compare the files with the database.

    Args:
        walk: the files that were found.
        answers: contents of the files that were read, by path.
        stored: what the database contains.
        mounts: the disks that were mounted during the walk.
        complete: whether the scan was not stopped early; else nothing counts as gone.
    """
    now_ns = time.time_ns()
    inventory = classify_files(walk, answers, stored.files, now_ns)
    missing = find_missing_files(walk, stored.files, mounts) if complete else MissingFiles({}, ())
    rows = match_rows(inventory, answers, stored, missing.gone, now_ns // 10**9)
    in_use = set(rows.model_ids.values())
    removed = find_removed_rows(walk, missing, stored, in_use) if complete else RemovedRows((), ())
    walk_errors = [
        f"{printable_path(path)} cannot be read ({reason}): what is stored about the files there is kept"
        for path, reason in walk.errors.items()
    ]
    broken = sum(file.verdict == "broken" for file in inventory.files.values())
    return _Changes(
        rows=rows,
        removed_ids=removed.ids,
        files=_changed_files(inventory.files, rows.model_ids, stored.files),
        gone=missing.gone,
        messages=inventory.messages,
        conditions=[*walk_errors, *inventory.unreadable, *missing.messages, *removed.messages],
        summary=ScanSummary(
            found=len(inventory.models),
            added=len(rows.inserted),
            changed=len(rows.updated),
            removed=len(removed.ids),
            unreadable=broken + len(inventory.unreadable),
            waiting=len(inventory.waiting),
            complete=complete,
        ),
    )


def _changed_files(
    files: Mapping[str, ModelFile], model_ids: Mapping[str, str], stored: Mapping[str, ModelFile]
) -> list[ModelFile]:
    """Return the rows of `model_files` that differ from the stored ones, with the ids of their models."""
    changed = []
    for path, file in files.items():
        model_id = model_ids.get(path, file.model_id)
        row = file if model_id == file.model_id else file._replace(model_id=model_id)
        if row != stored.get(path):
            changed.append(row)
    return changed
