"""`scan`: scans the models directories while no collector runs."""

import argparse

from collector.commands.database import open_with_events
from collector.models.scan import ModelScan
from collector.settings import Settings, find_settings_file, load_settings
from collector.text import Progress, say


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """Declare no arguments."""


def run(options: argparse.Namespace) -> int:
    """Scan the models directories that the settings name."""
    scan_now(load_settings(find_settings_file(options.config)))
    return 0


def scan_now(settings: Settings) -> None:
    """Scan once and print the result.

    Raises:
        DatabaseInUse: a collector runs.
        DatabaseError: the database cannot be used.
    """
    interval = settings.models.rescan_interval
    hint = (
        f"It scans every {interval} s by itself."
        if interval
        else "It does not scan: [models] rescan_interval is 0."
    )
    progress = Progress()

    def show_progress(done: int, total: int, path: str) -> None:
        progress.show(f"{done} of {total} files read  {path[-60:]}", last=not path)

    with open_with_events(settings, hint) as database:
        summary = ModelScan(database, settings.models_directories).run(show_progress)
    say(
        f"{summary.found} models: {summary.added} new, {summary.changed} changed, {summary.removed} removed; "
        f"{summary.unreadable} unreadable files, {summary.waiting} left for later; {summary.seconds:.1f} s"
    )
