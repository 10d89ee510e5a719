"""Every error the collector raises on purpose.

CollectorError
├── SettingsError             the settings are wrong; every fault is in the message (exit 78)
├── DatabaseError             the database cannot be used as it is (exit 1)
│   ├── DatabaseInUse         another collector writes it
│   ├── DatabaseDamaged       what is in the file is no longer what SQLite wrote
│   ├── DatabaseReplaced      the file that was opened is no longer there, or was written over
│   ├── DatabaseBusy          another program holds a lock on it just now: try again later
│   └── ValueNotStorable      one value does not fit its column
├── BackupFailed              a backup could not be made, or what should be one is none
├── ExportFailed              the SQL text could not be written
├── ParseError                bytes from outside are not what they claim to be
├── SourceAbsent              what a source reads does not exist here: no fault, no row
└── SourceFailed              what a source reads exists and cannot be read
"""


class CollectorError(Exception):
    """Base of all errors whose message is meant for the user."""


class SettingsError(CollectorError):
    """The settings cannot be used.

    Args:
        faults: one sentence for each fault, naming file, line and key.
    """

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        super().__init__("\n".join(faults))


class DatabaseError(CollectorError):
    """The database cannot be used as it is; the message says why and what to do."""


class DatabaseInUse(DatabaseError):  # noqa: N818 - it says what is the case
    """Another collector holds the lock of this database."""


class DatabaseDamaged(DatabaseError):  # noqa: N818
    """What is in the file is no longer what SQLite wrote."""


class DatabaseReplaced(DatabaseError):  # noqa: N818
    """The file that was opened was moved, removed, replaced or written over; what lies there is unknown."""


class DatabaseBusy(DatabaseError):  # noqa: N818
    """Another program holds a lock on the file; nothing was written, the same call may work later."""


class ValueNotStorable(DatabaseError):  # noqa: N818
    """A value does not fit its column.

    Args:
        table: name of the table.
        column: name of the column.
        value: what was to be stored.
        reason: why it cannot be.
    """

    def __init__(self, table: str, column: str, value: object, reason: str) -> None:
        self.table, self.column, self.value = table, column, value
        super().__init__(f"cannot store {value!r:.200} in {table}.{column}: {reason}")


class BackupFailed(CollectorError):  # noqa: N818
    """A backup could not be made, or what should be one is none; the message says why and what to do."""


class ExportFailed(CollectorError):  # noqa: N818
    """The SQL text of the database could not be written; the message says why and what to do."""


class ParseError(CollectorError):
    """Bytes from outside are not what they claim to be."""


class SourceAbsent(CollectorError):  # noqa: N818
    """What the source reads does not exist here (no driver, no GPU): no fault, and no row."""


class SourceFailed(CollectorError):  # noqa: N818
    """What the source reads exists and could not be read."""
