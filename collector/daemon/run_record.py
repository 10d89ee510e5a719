"""The row of `collector_runs` of this run: how the last run ended, and how this one does."""

import os
import time
from collections.abc import Sequence
from contextlib import suppress

import collector
from collector.database import Database
from collector.database.buffer import Buffer, Retention
from collector.database.integrity_check import is_checked_when_opened
from collector.errors import DatabaseError
from collector.health import COLLECTOR_RUNS, read_boot_id
from collector.schema import SqlValue, Write

_COLUMNS = tuple(column.name for column in COLLECTOR_RUNS.columns)
_INSERT = (  # OR IGNORE: a commit may have been durable although it was reported as failed
    f"INSERT OR IGNORE INTO collector_runs ({', '.join(_COLUMNS)}) "  # noqa: S608 - names are our own
    f"VALUES ({', '.join('?' * len(_COLUMNS))})"
)
_RECORD_STOP = "UPDATE collector_runs SET stopped_at = ?, stopped_cleanly = ? WHERE id = ?"
_RECORD_INTEGRITY = "UPDATE collector_runs SET integrity = ?, integrity_checked_at = ? WHERE id = ?"


class RunRecord:
    """The record of one run of the collector in its database.

    Creating it inserts the row. If another program holds a lock, or the disk is full, the row is committed by
    the first flush instead: neither prevents the collector from starting.

    Args:
        database: the open database.
        buffer: the buffer of the same run.

    Attributes:
        is_check_due: whether the integrity of the file is to be checked.

    Raises:
        DatabaseError: the database cannot be read.
    """

    def __init__(self, database: Database, buffer: Buffer) -> None:
        self._database = database
        self._buffer = buffer
        earlier, is_clean = _earlier_runs(database)
        now = int(time.time())
        integrity, checked_at = None, None
        if not is_clean:
            # A small file has been checked in full a moment ago, when it was opened.
            integrity, checked_at = ("ok", now) if is_checked_when_opened(database) else ("due", None)
        self.is_check_due = integrity == "due"
        (newest,) = database.query("SELECT coalesce(max(id), 0) AS id FROM collector_runs")
        self._id = newest["id"] + len(earlier) + 1  # rows of earlier runs are inserted before this one
        row = {
            "id": self._id,
            "version": collector.__version__,
            "process_id": os.getpid(),
            "boot_id": read_boot_id(),
            "started_at": now,
            "started_boot_seconds": time.clock_gettime(time.CLOCK_BOOTTIME),
            "integrity": integrity,
            "integrity_checked_at": checked_at,
        }
        rows = [tuple(map(values.get, _COLUMNS)) for values in (*earlier, row)]
        try:
            with database.transaction() as connection:
                connection.executemany(_INSERT, rows)
        except DatabaseError:
            buffer.add([Write(_INSERT, rows)], Retention.KEPT)

    def add_integrity(self, result: str) -> None:
        """Add the result of the integrity check, `ok` or `damaged`, to the buffer."""
        self._buffer.add([Write(_RECORD_INTEGRITY, [(result, int(time.time()), self._id)])], Retention.KEPT)

    def add_stop(self) -> None:
        """Add the clean stop to the buffer: it is committed together with the last rows, or not at all."""
        self._buffer.add([Write(_RECORD_STOP, [(int(time.time()), 1, self._id)])], Retention.KEPT)

    def record_lost_rows(self) -> None:
        """Record that the run stopped without writing all rows, if the database can be written again."""
        with suppress(DatabaseError), self._database.transaction() as connection:
            connection.execute(_RECORD_STOP, (int(time.time()), 0, self._id))


def _earlier_runs(database: Database) -> tuple[Sequence[dict[str, SqlValue]], bool]:
    """Return rows to be inserted for earlier runs, and whether the last run left the file clean.

    A file that is not clean is checked for damage. There are four situations:
    - The last run stopped cleanly, and no check of the file was left undone: clean.
    - The last run was killed, lost rows, found damage, or stopped before its check had ended: not clean.
    - There is no run, but there are samples: version 0.1.0, which recorded no runs, has written the file.
      How it ended is not known, so: not clean. A row for it states since when there are samples.
    - There is neither a run nor a sample: a new database, clean.
    """
    runs = database.query("SELECT stopped_cleanly, integrity FROM collector_runs ORDER BY id DESC LIMIT 1")
    if runs:
        return (), runs[0]["stopped_cleanly"] == 1 and runs[0]["integrity"] not in ("due", "damaged")
    (oldest,) = database.query("SELECT min(timestamp) AS timestamp FROM host_metrics")
    if oldest["timestamp"] is None:
        return (), True
    return ({"id": 1, "version": "0.1.0", "started_at": oldest["timestamp"]},), False
