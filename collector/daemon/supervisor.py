"""One daemon after another: new settings, or another file at the database's path, begin the next one.

Daemon A runs until one of these events:

- SIGTERM: A writes everything and stops, and the process ends.
- SIGHUP with new settings: A writes everything and stops. Daemon B starts with the new settings, or with the
  old ones if it cannot use the new ones.
- DatabaseReplaced: A stops without writing. B starts with what is at the path now, and with the rows that A
  could not write.
- DatabaseDamaged: the same if `[database] on_damage = "fresh"`: B sets the damaged file aside and creates an
  empty one. Otherwise the process ends with the error.
"""

import faulthandler
from collections.abc import Callable, Sequence

import structlog

from collector.catalog import OWN_TABLES
from collector.daemon import signals, systemd
from collector.daemon.daemon import Daemon
from collector.database.buffer import Batch, clear_references, leave_out_tables
from collector.errors import CollectorError, DatabaseBusy, DatabaseDamaged, DatabaseError, DatabaseReplaced
from collector.output import BackgroundOutput
from collector.schema import Table
from collector.settings import Settings

_LOCK_PAUSE_SECONDS = 0.2

_LAST_OUTPUT_SECONDS = 0.2
"""How long the end of the process waits for a slow reader of standard error."""

_RUN_TABLES = ("collector_runs", "server_runs")
"""Their rows describe runs by the ids of one database, and mean nothing in another one."""

_REFERENCES = ("run_id", "model_id", "counted_from_zero")
"""Columns that refer to rows of the same database; another one may not contain these rows, or others.

`counted_from_zero` is a statement about the run: in the other database the first sample of the same process
may count in full, and nothing must count twice."""


def run_until_signalled(settings: Settings, reread: Callable[[], Settings]) -> None:
    """Run daemons in this thread until a signal asks to stop.

    Args:
        settings: the settings of the first one.
        reread: reads the settings again; raises SettingsError.

    Raises:
        SettingsError: the API key cannot be read.
        DatabaseError: the database cannot be used, or is found to be damaged.
    """
    signals.block_signals()  # before any other thread starts: threads inherit the blocked signals
    faulthandler.enable()  # systemd's watchdog kills with SIGABRT: print what each thread was doing
    output = BackgroundOutput()
    try:
        _run_daemons(settings, reread, output)
    finally:
        output.wait_until_written(_LAST_OUTPUT_SECONDS)


def _run_daemons(settings: Settings, reread: Callable[[], Settings], output: BackgroundOutput) -> None:
    """Run one daemon after another; see `run_until_signalled`."""
    daemon = Daemon(settings, output)
    while True:
        try:
            new_settings = _run(daemon, reread)
            if new_settings is None:
                return
            daemon, settings = _reload(settings, new_settings, output)
        except (DatabaseDamaged, DatabaseReplaced) as error:
            daemon = _replace_database(daemon, settings, error, output)


def _run(daemon: Daemon, reread: Callable[[], Settings]) -> Settings | None:
    """Start a daemon, run it and stop it; return the settings of the next one, or None to end the process."""
    keep_rows = False
    try:
        daemon.start()
        return daemon.run(reread)
    except (DatabaseDamaged, DatabaseReplaced):
        keep_rows = True
        raise
    finally:
        daemon.stop(keep_rows=keep_rows)


def _reload(settings: Settings, new_settings: Settings, output: BackgroundOutput) -> tuple[Daemon, Settings]:
    """Create a daemon with the new settings, or with the old ones; return it with the settings it has."""
    try:
        return _create(new_settings, output), new_settings
    except CollectorError as error:
        daemon = _create(settings, output)
        structlog.get_logger().error(f"the old settings stay in use: {error}")
        return daemon, settings


def _replace_database(
    daemon: Daemon, settings: Settings, error: DatabaseError, output: BackgroundOutput
) -> Daemon:
    """Create a daemon for what is at the database's path now, with the rows that the last one did not write.

    Raises:
        DatabaseError: that cannot be used, for the same reasons as at a start.
    """
    waiting = transferable(daemon.hand_over(), OWN_TABLES)
    rows = sum(len(batch.rows) for batch in waiting)
    try:
        successor = _create(settings, output, error, waiting)
    except CollectorError:
        structlog.get_logger().error("the last rows could not be written and are lost", rows=rows)
        raise
    structlog.get_logger().warning(f"switched to what is now at {settings.database_path}", rows_waiting=rows)
    return successor


def transferable(batches: Sequence[Batch], tables: Sequence[Table]) -> list[Batch]:
    """Return what can be written into another database, without the references to rows of the old one.

    Example: the database is replaced with a backup of yesterday. A waiting row of `llama_metrics` refers to a
    row of `server_runs` that was created today. In the backup that id does not exist, or will soon belong to
    another run. So the reference becomes NULL, which means unknown.

    Args:
        batches: the batches that the old database has not received.
        tables: the tables that they may belong to.
    """
    references = {
        statement: [number for number, name in enumerate(table.written_columns) if name in _REFERENCES]
        for table in tables
        for statement in (table.insert_statement, table.replace_statement)
    }
    return clear_references(leave_out_tables(batches, _RUN_TABLES), references)


def _create(
    settings: Settings,
    output: BackgroundOutput,
    previous_error: DatabaseError | None = None,
    waiting: Sequence[Batch] = (),
) -> Daemon:
    """Create a daemon, and wait while another program has the database locked.

    At a start a lock is reported and ends the process; a lock that happens to be there at this moment must
    not end a service that is running.

    Raises:
        DatabaseBusy: a signal asks to stop while the database is still locked.
    """
    is_logged = False
    while True:
        try:
            return Daemon(settings, output, previous_error, waiting)
        except DatabaseBusy as error:
            if not is_logged:
                is_logged = True
                structlog.get_logger().warning(f"waiting for the database: {error}")
            received = signals.wait_for_signal(_LOCK_PAUSE_SECONDS)
            if received and signals.is_stop_signal(received):
                raise
            systemd.notify(WATCHDOG=1)
