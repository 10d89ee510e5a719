"""Connections to the database file, which is opened nowhere else.

In this process only SQLite may open the file: closing any other descriptor of it releases SQLite's POSIX
locks, and another program could then write in the middle of our transaction.
"""

import os
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from collector.database.ownership import match_owner
from collector.errors import (
    DatabaseBusy,
    DatabaseDamaged,
    DatabaseError,
    DatabaseReplaced,
    StatementFailed,
    Stopped,
)
from collector.schema import quote_identifier

BUSY_TIMEOUT_SECONDS = 0.2
"""How long a write waits for a lock. A writer that waits keeps new readers out, so it must not wait long."""

READER_TIMEOUT_SECONDS = 5.0

QUICK_CHECK_MAX_BYTES = 32 * 2**20
"""Files up to this size are checked in full when they are opened: about 30 ms if they are in memory."""


def connect_for_writing(path: Path, *, is_own: bool = True) -> sqlite3.Connection:
    """Open the database for the collector; create it and its directory if they are missing.

    With a rollback journal and `synchronous=EXTRA` no committed row is lost in a power cut, and any other
    user with read permission can open the file at any time.

    Args:
        path: the file.
        is_own: whether this machine wrote it; one from elsewhere may contain triggers and views that are to
            run no function with side effects (`trusted_schema`).

    Raises:
        DatabaseError: not a database, damaged, read-only, or its directory cannot be created.
        DatabaseBusy: another program holds a lock.
    """
    check_writable(path)
    is_new = not path.exists()
    with translate_sqlite_errors(path), ExitStack() as on_error:
        connection = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
        )
        if is_new:
            match_owner(path)
        on_error.callback(connection.close)
        # Before 3.44, SQLite with `trusted_schema = OFF` refuses to run the triggers of a full-text index,
        # which are common: no line of `logs` could be written.
        connection.execute(f"PRAGMA trusted_schema = {'ON' if is_own else 'OFF'}")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute("PRAGMA synchronous = EXTRA")
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
        if pages * page_bytes <= QUICK_CHECK_MAX_BYTES:
            check_integrity(connection, path, "quick_check")
        if pages == 0:  # with rows in the file, this would need a rewrite of it
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        (mode,) = connection.execute("PRAGMA journal_mode = DELETE").fetchone()
        if mode != "delete":
            raise DatabaseError(
                f"{path}: the journal mode stays {mode}: close every other program that has it open"
            )
        on_error.pop_all()
    return connection


def connect_read_only(path: Path) -> sqlite3.Connection:
    """Open a database read-only, as any other reader does; its schema may be from elsewhere.

    Raises:
        DatabaseError: no such file, not a database, damaged, or not readable by this user.
    """
    try:
        path.stat()
    except FileNotFoundError as error:
        raise DatabaseError(
            f"there is no database at {path}: start the collector first (llama-collector run)"
        ) from error
    except OSError as error:
        raise DatabaseError(f"{path}: {error.strerror}: llama-collector check --as USER says why") from error
    with translate_sqlite_errors(path):
        connection = sqlite3.connect(
            f"file:{quote(str(path))}?mode=ro", uri=True, timeout=READER_TIMEOUT_SECONDS, isolation_level=None
        )
        try:
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except BaseException:
            connection.close()
            raise
    return connection


def connect_for_copy(path: Path) -> sqlite3.Connection:
    """Create a file for a copy of a database, readable by its owner only.

    It has no journal and is not synchronised: an unfinished copy is deleted, and a finished one is
    synchronised as a file.

    Raises:
        DatabaseError: the file exists already, or cannot be created.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise DatabaseError(f"{path} cannot be created: {error.strerror}") from error
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = OFF")
    connection.execute("PRAGMA synchronous = OFF")
    return connection


def is_in_wal_mode(path: Path) -> bool:
    """Return whether the header of a database file says that its journal is a write-ahead log.

    Must not be called in a process that has the database open, see above.
    """
    with suppress(OSError), path.open("rb") as file:
        return file.read(_WAL_VERSION_OFFSET + 1)[_WAL_VERSION_OFFSET:] == b"\x02"
    return False


_WAL_VERSION_OFFSET = 18  # "file format write version", https://www.sqlite.org/fileformat.html


def check_integrity(connection: sqlite3.Connection, path: Path, check: str = "integrity_check") -> None:
    """Check the structure of the whole file.

    Rows of other programs that break their own rules are no damage, and an index is not checked whose
    function or collation only another program has.

    Args:
        connection: connection to the file.
        path: path of the file, for the message.
        check: `integrity_check`, or the faster `quick_check`, which does not compare indexes with rows.

    Raises:
        DatabaseDamaged: the file is damaged.
    """
    findings = _findings(connection, f"{check}({_MAX_FINDINGS})")
    if findings is None or len(findings) >= _MAX_FINDINGS:
        # A function or collation is missing here, or what does not matter fills the list: table by table.
        tables = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND sql NOT LIKE 'CREATE VIRTUAL%'"
        )
        findings = [
            finding
            for (name,) in tables.fetchall()
            for finding in _findings(connection, f"{check}({quote_identifier(name)})") or ()
        ]
    if damage := next((finding for finding in findings if not _OF_CONTENT(finding)), None):
        damage = damage.removeprefix("*** in database main ***\n").partition("\n")[0]
        raise DatabaseDamaged(f"{path}: {damage}: {_ADVICE[sqlite3.SQLITE_CORRUPT]}")


_MAX_FINDINGS = 100

_OF_CONTENT = re.compile(
    r"ok$|(?:NULL|NUMERIC|TEXT|INTEGER|REAL|INT|BLOB|non-\w+) value in |CHECK constraint failed in "
    r"|malformed inverted index for FTS"
).match
"""Findings that are no damage: a row breaks a rule that its table got later, or is not in a search index."""


def _findings(connection: sqlite3.Connection, check: str) -> list[str] | None:
    """Return what a check finds; None if it needs a function, collation or module that is not here."""
    try:
        with closing(connection.execute(f"PRAGMA {check}")) as rows:
            return [finding for (finding,) in rows]
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_ERROR:
            raise
        return None


def fetch(
    connection: sqlite3.Connection, statement: str, parameters: Sequence[object] = ()
) -> list[dict[str, Any]]:
    """Return all rows of a SELECT, as dictionaries."""
    cursor = connection.execute(statement, parameters)
    names = [description[0] for description in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Run the block in one write transaction: all of it is committed, or nothing.

    Raises:
        DatabaseBusy: another program holds a lock; nothing was written.
        DatabaseError: the disk is full, the file is read-only or damaged; nothing was written.
    """
    with translate_sqlite_errors(None):
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            # After BUSY at COMMIT the transaction is still open; after FULL it is already gone.
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


@contextmanager
def translate_sqlite_errors(path: Path | None) -> Iterator[None]:
    """Translate SQLite's errors about the file into ours, whose messages say what to do.

    Args:
        path: path of the file; None for the database that the collector has open.
    """
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
        raise  # about a value, not about the file: the repositories translate it
    except sqlite3.DatabaseError as error:
        extended_code = getattr(error, "sqlite_errorcode", 0)
        code = extended_code & 0xFF  # the primary code: SQLITE_BUSY_SNAPSHOT, for example, is a SQLITE_BUSY
        where = f"{path}: " if path else ""
        if code == sqlite3.SQLITE_INTERRUPT:
            raise Stopped("the collector is stopping") from error
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise DatabaseBusy(f"{where}another program holds a lock on the database ({error})") from error
        # An open file that is suddenly "not a database" was a database when it was opened.
        if extended_code == sqlite3.SQLITE_READONLY_DBMOVED or (code == sqlite3.SQLITE_NOTADB and not path):
            raise DatabaseReplaced(
                f"{where}the database was moved, removed, replaced or overwritten ({error})"
            ) from error
        if _UNREADABLE_OBJECT(str(error)):
            raise DatabaseError(
                f"{where}{error}: another program has created something that SQLite "
                f"{sqlite3.sqlite_version} does not understand. Remove it with that program"
            ) from error
        advice = f": {_ADVICE[code]}" if code in _ADVICE else ""
        classes = {sqlite3.SQLITE_CORRUPT: DatabaseDamaged, sqlite3.SQLITE_ERROR: StatementFailed}
        raise classes.get(code, DatabaseError)(f"{where}{error}{advice}") from error


_UNREADABLE_OBJECT = re.compile(
    r"malformed database schema \(.*\) - (?:near |unknown |no such |unrecognized |unsupported |error in )"
).match


_ADVICE = {
    sqlite3.SQLITE_NOTADB: "it is no SQLite database. Name another file in [database] path, or move it away.",
    sqlite3.SQLITE_CORRUPT: "the database is damaged. Stop the collector and put the newest good backup "
    "in its place with `llama-collector restore --latest` (what is there now is kept beside it), or save "
    "what can still be read with the sqlite3 shell's .recover (data/README.md, A damaged database).",
    sqlite3.SQLITE_READONLY: "the collector must be able to write the file and its directory. Change their "
    "owner or mode, or name another file in [database] path.",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened, or no journal can be created beside it. Check "
    "the path and permissions, and whether the file system has become read-only (findmnt, dmesg).",
    sqlite3.SQLITE_FULL: "the disk is full. Free some space; samples wait in memory until then.",
    sqlite3.SQLITE_IOERR: "the disk reports an error, or this user's quota is used up. See `quota -s` and "
    "the kernel's log (dmesg).",
    sqlite3.SQLITE_PERM: "permission denied. Check the owner and mode of the file and its directory.",
}


def check_writable(path: Path) -> None:
    """Create the directory of a database, and check that the file in it can be written or created.

    Raises:
        DatabaseError: it cannot be.
    """
    try:
        if path.is_dir():
            raise DatabaseError(f"{path} is a directory: name a file in [database] path")
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatabaseError(f"cannot use or create the directory {path.parent}: {error.strerror}") from error
    for needed in (path.parent, path):  # the rollback journal is created beside the file
        if needed.exists() and not os.access(needed, os.W_OK):
            raise DatabaseError(f"{needed} cannot be written: {_ADVICE[sqlite3.SQLITE_READONLY]}")
