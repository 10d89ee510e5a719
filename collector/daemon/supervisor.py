"""Collector after collector: new settings, or another file in the database's place, begin a new one."""

import faulthandler
import sys
from collections.abc import Callable, Sequence

import structlog

from collector.daemon import signals, systemd
from collector.daemon.daemon import Daemon
from collector.database.buffer import Batch
from collector.errors import CollectorError, DatabaseBusy, DatabaseDamaged, DatabaseError, DatabaseReplaced
from collector.settings import Settings

_LOCK_PAUSE_SECONDS = 0.2


def run_until_signalled(settings: Settings, reread: Callable[[], Settings]) -> None:
    """A collector from start to stop, in this thread; new settings end it and start another one.

    Args:
        settings: to begin with.
        reread: reads the settings anew; raises SettingsError.

    Raises:
        SettingsError: the API key cannot be read.
        DatabaseError: the database cannot be used, or turns out to be damaged.
    """
    signals.block_signals()  # before any other thread starts: threads inherit what is blocked
    faulthandler.enable()  # systemd's watchdog ends us by SIGABRT: where each thread stood is worth knowing
    daemon = Daemon(settings)
    wanted: Settings | None = settings
    while wanted:
        try:
            if wanted := _run(daemon, reread):
                daemon, settings = _renewed(settings, wanted)
        except (DatabaseDamaged, DatabaseReplaced) as lost:
            daemon, wanted = _successor(daemon, settings, lost), settings


def _run(daemon: Daemon, reread: Callable[[], Settings]) -> Settings | None:
    is_left = False
    try:
        daemon.start()
        return daemon.run(reread)
    except (DatabaseDamaged, DatabaseReplaced):
        is_left = True
        raise
    finally:
        daemon.stop(is_left=is_left)
        sys.stderr.flush()


def _successor(daemon: Daemon, settings: Settings, lost: DatabaseError) -> Daemon:
    """A collector over what lies at the database's path now; it has what the one before could not write.

    Raises:
        DatabaseError: that cannot be used, as at a start.
    """
    waiting = daemon.hand_over()
    rows = sum(len(batch.rows) for batch in waiting)
    try:
        successor = _patiently(settings, lost, waiting)
    except CollectorError:
        structlog.get_logger().error("the last rows could not be written and are lost", rows=rows)
        raise
    structlog.get_logger().warning(f"went over to what is now {settings.database_path}", rows_waiting=rows)
    return successor


def _renewed(settings: Settings, wanted: Settings) -> tuple[Daemon, Settings]:
    """A collector with the wanted settings, else one with the old ones; and those that it has."""
    try:
        return _patiently(wanted), wanted
    except CollectorError as error:
        daemon = _patiently(settings)
        structlog.get_logger().error(f"the old settings go on: {error}")
        return daemon, settings


def _patiently(
    settings: Settings, lost: DatabaseError | None = None, waiting: Sequence[Batch] = ()
) -> Daemon:
    """A collector as soon as other programs let it: a lock that comes just now must not end the service.

    Raises:
        DatabaseBusy: a signal says to end while another program still holds a lock.
    """
    told = False
    while True:
        try:
            return Daemon(settings, lost, waiting)
        except DatabaseBusy as error:
            if not told:
                told = True
                structlog.get_logger().warning(f"waiting for the database: {error}")
            received = signals.wait(_LOCK_PAUSE_SECONDS)
            if received and signals.is_stop_signal(received):
                raise
            systemd.notify(WATCHDOG=1)
