"""`export`: writes the whole database as SQL text, also while a collector runs."""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO

from collector.backups.files import sync_to_disk
from collector.backups.sql_text import count_rows, dump
from collector.database.connection import connect_read_only, translate_sqlite_errors
from collector.errors import ExportFailed
from collector.settings import find_settings_file, load_settings
from collector.text import Progress

_STATEMENTS_PER_PROGRESS = 10_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `export`."""
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write to this file; default: standard output"
    )
    parser.add_argument("--force", action="store_true", help="replace FILE if it exists")


def run(options: argparse.Namespace) -> int:
    """Export the database that the settings name."""
    settings = load_settings(find_settings_file(options.config))
    export(settings.database_path, options.output, force=options.force)
    return 0


def export(database: Path, output: Path | None, *, force: bool) -> None:
    """Write the database as SQL text, one row at a time, as it is at this moment.

    Until it is read, a running collector cannot commit: its rows wait in its buffer.

    Args:
        database: its path.
        output: path of the text, which is written completely or not at all; None for standard output.
        force: whether to replace a file that exists already.

    Raises:
        ExportFailed: the file exists already, or it cannot be written.
        DatabaseError: there is no database, or it cannot be read.
    """
    if output is None:
        _write(database, sys.stdout.buffer)
        return
    if output.exists() and not (force and output.is_file()):
        advice = "add --force to replace it" if output.is_file() else "name a file"
        raise ExportFailed(f"{output} exists already: {advice}")
    try:
        with _atomic_file(output, database) as file:
            _write(database, file)
    except OSError as error:
        raise ExportFailed(
            f"{output} could not be written: {error.strerror}. Nothing was changed."
        ) from error


def _write(database: Path, file: IO[bytes]) -> None:
    """Write all statements of the export, with progress on standard error."""
    progress = Progress()
    with closing(connect_read_only(database)) as connection, translate_sqlite_errors(database):
        rows = count_rows(connection)
        for number, statement in enumerate(dump(connection)):
            if number % _STATEMENTS_PER_PROGRESS == 0:
                progress.show(f"{number:,} of {rows:,} rows")
            file.write(statement)
        file.flush()


@contextmanager
def _atomic_file(path: Path, database: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file, which is renamed to the path if the block ends without an error.

    Its mode is that of the database: a user who may not read the database must not read its export.
    """
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            yield file
            os.fchmod(file.fileno(), database.stat().st_mode & 0o666)
            os.fsync(file.fileno())
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink()
            raise
    sync_to_disk(path.parent)
