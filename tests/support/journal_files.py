"""Real journal files, written by systemd-journal-remote (Debian package of that name)."""

import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.support.log_reading import LogCollector

REMOTE = "/lib/systemd/systemd-journal-remote"
START = 1_790_000_000
UNIT = "llama-server.service"
BOOTS = ("0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210")


def entry(message: str | bytes, second: float = 0, **fields: str) -> bytes:
    """Return one entry in the export format of the journal.

    Args:
        message: the line, also as bytes that are not valid text.
        second: seconds after `START`.
        fields: in addition to the usual ones, or instead of them.
    """
    microseconds = round((START + second) * 1e6)
    values = {
        "__REALTIME_TIMESTAMP": str(microseconds),
        "__MONOTONIC_TIMESTAMP": str(microseconds % 10**9),
        "_BOOT_ID": BOOTS[0],
        "_SYSTEMD_UNIT": UNIT,
        "_PID": "42",
        "PRIORITY": "6",
    } | fields
    text = "".join(f"{name}={value}\n" for name, value in values.items()).encode()
    raw = message.encode() if isinstance(message, str) else message
    return text + b"MESSAGE\n" + len(raw).to_bytes(8, "little") + raw + b"\n\n"


def write_journal(path: Path, entries: Iterable[bytes]) -> None:
    """Append the entries to a journal file."""
    subprocess.run(
        [REMOTE, f"--output={path}", "-"], input=b"".join(entries), check=True, stderr=subprocess.DEVNULL
    )


def journal_collector(database: Path, directory: Path, *units: str) -> LogCollector:
    """Return a collector that reads these units from the journal files of a directory."""
    from collector.logs.journal.reader import JournalReader

    arguments = [f"--directory={directory}"]
    return LogCollector(
        database, lambda sink, positions: JournalReader(units or (UNIT,), sink, positions, arguments)
    )
