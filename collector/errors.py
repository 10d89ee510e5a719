"""Every error of the collector, named after the condition that it reports.

CollectorError                base of all errors whose message is shown to the user
├── SettingsError             the settings are wrong; the message lists all faults (exit 78)
├── DatabaseError             the database cannot be used as it is (exit 1)
│   ├── DatabaseInUse         another collector is writing to it
│   ├── DatabaseDamaged       the content of the file is not what SQLite wrote
│   ├── DatabaseReplaced      the file was moved, removed, replaced or overwritten while it was open
│   ├── DatabaseBusy          another program holds a lock on it: the same call may succeed later
│   ├── CopyRestarted         it cannot be copied in steps: another program writes into it too often
│   ├── StatementFailed       a statement cannot be run, as a rule because of another program's trigger
│   └── ValueNotStorable      one value does not fit its column
├── BackupFailed              a backup could not be made, or a file is not a usable backup
│   └── NotABackup            a file is not a backup, whatever its name says
├── ExportFailed              the SQL text could not be written
├── ParseError                input is not in the expected format
│   └── NotGguf               the first bytes of a file are not those of GGUF
├── SourceAbsent              this machine does not have what a source reads: not a fault, no row
├── SourceFailed              what a source reads exists, but could not be read
└── Stopped                   the collector is stopping; the next start continues the work

RequestFailed                 a request to llama-server had no valid answer; becomes a state of the source
├── ServerDown                nothing listens at its address, or the network does not reach it
│   └── ServerUnreachable     the network does not reach it: whether a server runs there is not known
├── ServerBusy                no connection, or no complete answer, within the time-out
├── InvalidAnswer             the answer is not that of a llama-server
│   └── AnswerTooLong         the answer is larger than is accepted
└── UnexpectedStatus          an HTTP status other than 200

FileRewritten                 a log file no longer contains what was read from it
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
    """The database cannot be used as it is. The message says why, and what to do."""


class DatabaseInUse(DatabaseError):
    """Another collector holds the lock of this database."""


class CopyRestarted(DatabaseError):
    """A copy in steps does not end, because another program writes."""


class StatementFailed(DatabaseError):
    """SQLite cannot run a statement: something that it needs does not exist.

    Example: another program has put a trigger on `logs` that calls a function which only that program has.
    """


class DatabaseDamaged(DatabaseError):
    """The content of the file is not what SQLite wrote."""


class DatabaseReplaced(DatabaseError):
    """The file was moved, removed, replaced or overwritten while it was open."""


class DatabaseBusy(DatabaseError):
    """Another program holds a lock on the file. Nothing was written; the same call may succeed later."""


class ValueNotStorable(DatabaseError):
    """A value does not fit its column.

    Args:
        table: name of the table.
        column: name of the column.
        value: the value.
        reason: why it cannot be stored.
    """

    def __init__(self, table: str, column: str, value: object, reason: str) -> None:
        self.table, self.column, self.value = table, column, value
        super().__init__(f"cannot store {value!r:.200} in {table}.{column}: {reason}")


class BackupFailed(CollectorError):
    """A backup could not be made, or a file is not a usable backup. The message says why, and what to do."""


class NotABackup(BackupFailed):
    """The content of a file is not that of a backup."""


class ExportFailed(CollectorError):
    """The SQL text of the database could not be written. The message says why, and what to do."""


class ParseError(CollectorError):
    """Input from outside is not in the expected format."""


class NotGguf(ParseError):
    """The first bytes of a file are not those of GGUF. So it is no GGUF file that is still being written."""


class SourceAbsent(CollectorError):
    """This machine does not have what the source reads, such as a GPU: not a fault, and no row."""


class SourceFailed(CollectorError):
    """What the source reads exists, but could not be read."""


class Stopped(CollectorError):
    """The collector is stopping; the next start continues the work."""


class RequestFailed(Exception):
    """A request to llama-server had no valid answer."""


class ServerDown(RequestFailed):
    """Nothing listens at the address, or the network does not reach it."""


class ServerUnreachable(ServerDown):
    """The network does not reach its machine: whether a server runs there is not known."""


class ServerBusy(RequestFailed):
    """There was no connection, or no complete answer, within the time-out."""


class InvalidAnswer(RequestFailed):
    """The answer is not that of a llama-server: too long, not HTTP, or with an untrusted certificate."""


class AnswerTooLong(InvalidAnswer):
    """The answer is larger than is accepted."""


class UnexpectedStatus(RequestFailed):
    """The server answered with a status other than 200.

    Args:
        status: the HTTP status.
    """

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"it answers {status}")


class FileRewritten(Exception):
    """A log file no longer contains what was read from it: it was truncated or overwritten."""


class RotationUnderWay(Exception):
    """Log files are being renamed at this moment; the next poll reads them."""
