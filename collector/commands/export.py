"""`export`: the whole database as SQL text, also while a collector runs."""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO

from collector.backups.files import sync_to_disk
from collector.backups.sql_text import count_rows, dump
from collector.commands.progress import Progress
from collector.database.connection import connect_read_only, translate_sqlite_errors
from collector.errors import ExportFailed
from collector.settings import find_settings_file, load_settings

_STATEMENTS_PER_PROGRESS = 10_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `export`."""
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write it to this file; else to standard output"
    )
    parser.add_argument("--force", action="store_true", help="replace FILE if it exists")


def run(options: argparse.Namespace) -> int:
    """Export the database that the settings name."""
    settings = load_settings(find_settings_file(options.config))
    export(settings.database_path, options.output, force=options.force)
    return 0


def export(database: Path, output: Path | None, *, force: bool) -> None:
    """Write the database as SQL text, one row at a time, as it is at this moment.

    While it is read, a running collector's rows wait in its memory.

    Args:
        database: its path.
        output: path of the text, which appears there complete or not at all; None for standard output.
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
        with _new_file(output, database) as file:
            _write(database, file)
    except OSError as error:
        raise ExportFailed(
            f"{output} could not be written: {error.strerror}. Nothing was changed."
        ) from error


def _write(database: Path, file: IO[bytes]) -> None:
    with closing(connect_read_only(database)) as connection, translate_sqlite_errors(database):
        file.writelines(_with_progress(dump(connection), count_rows(connection)))
        file.flush()


@contextmanager
def _new_file(path: Path, database: Path) -> Iterator[IO[bytes]]:
    """Provide a temporary file that is renamed to the path where the block ends without an error.

    Its mode is that of the database: whoever may not read one must not read the other.
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


def _with_progress(statements: Iterable[bytes], rows: int) -> Iterator[bytes]:
    """Yield the statements, and show from time to time how many of them are written."""
    progress = Progress()
    for number, statement in enumerate(statements):
        if number % _STATEMENTS_PER_PROGRESS == 0:
            progress.show(f"{number:,} of {rows:,} rows")
        yield statement
