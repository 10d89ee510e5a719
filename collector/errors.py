"""Every error of the collector, named after the condition that it reports.

CollectorError                its message is meant for the user
├── SettingsError             the settings are wrong; every fault is in the message (exit 78)
├── DatabaseError             the database cannot be used as it is (exit 1)
│   ├── DatabaseInUse         another collector writes it
│   ├── DatabaseDamaged       the content of the file is not what SQLite wrote
│   ├── DatabaseReplaced      the file that was opened is no longer there, or was overwritten
│   ├── DatabaseBusy          another program holds a lock on it at the moment: try again later
│   └── ValueNotStorable      one value does not fit its column
├── BackupFailed              a backup could not be made, or a file is not a usable backup
├── ExportFailed              the SQL text could not be written
├── ParseError                input is not in the format that it should be in
│   └── NotGguf               the first bytes of the file are those of another format
├── SourceAbsent              what a source reads does not exist here: not a fault, no row
├── SourceFailed              what a source reads exists and cannot be read
└── Stopped                   the collector is stopping; what is not done waits for its next start

RequestFailed                 a request to llama-server gave no usable answer; translated into a state
├── ServerDown                nothing listens there, or the network does not reach it
├── ServerBusy                no connection, or no complete answer, within the time-out
├── InvalidAnswer             the answer is not one of a llama-server
│   └── AnswerTooLong         the answer has more bytes than are accepted
└── UnexpectedStatus          an HTTP status other than 200

FileRewritten                 a log file no longer contains what was read of it
RotationUnderWay              log files are being renamed at this moment
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


class DatabaseInUse(DatabaseError):
    """Another collector holds the lock of this database."""


class DatabaseDamaged(DatabaseError):
    """The content of the file is no longer what SQLite wrote."""


class DatabaseReplaced(DatabaseError):
    """The file that was opened was moved, removed, replaced or overwritten; what is there now is unknown."""


class DatabaseBusy(DatabaseError):
    """Another program holds a lock on the file; nothing was written, the same call may work later."""


class ValueNotStorable(DatabaseError):
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


class BackupFailed(CollectorError):
    """A backup could not be made, or a file is not a usable backup; the message says why and what to do."""


class ExportFailed(CollectorError):
    """The SQL text of the database could not be written; the message says why and what to do."""


class ParseError(CollectorError):
    """Input is not in the format that it should be in."""


class NotGguf(ParseError):
    """The first bytes of the file are those of another format: it is not an incomplete GGUF file either."""


class SourceAbsent(CollectorError):
    """What the source reads does not exist here (no driver, no GPU): not a fault, and no row."""


class SourceFailed(CollectorError):
    """What the source reads exists and could not be read."""


class Stopped(CollectorError):
    """The collector is stopping; what is not done waits for its next start."""


class RequestFailed(Exception):
    """A request to llama-server gave no usable answer."""


class ServerDown(RequestFailed):
    """Nothing listens there, or the network does not reach it."""


class ServerUnreachable(ServerDown):
    """The network does not reach its machine: whether a server runs there is not known."""


class ServerBusy(RequestFailed):
    """No connection, or no complete answer, came within the time-out."""


class InvalidAnswer(RequestFailed):
    """The answer is not one of a llama-server: endless, not HTTP, or with an untrusted certificate."""


class AnswerTooLong(InvalidAnswer):
    """The answer has more bytes than are accepted."""


class UnexpectedStatus(RequestFailed):
    """The server answered with a status other than 200.

    Args:
        status: the HTTP status.
    """

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"it answers {status}")


class FileRewritten(Exception):
    """A log file no longer contains what was read of it: it was truncated or written anew."""


class RotationUnderWay(Exception):
    """Log files are being renamed at this moment; the next poll finds them in order."""
