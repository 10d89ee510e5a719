"""The command line."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import collector
from collector.errors import CollectorError, SettingsError
from collector.settings import Settings, find_settings_file, load_settings

EXIT_DONE, EXIT_FAILED, EXIT_SETTINGS = 0, 1, 78

_EXAMPLES = """\
examples:
  llama-collector run                          collect until Ctrl-C
  llama-collector --config my.toml check       look at the settings and what they point at
  llama-collector status                       the newest readings
  llama-collector status --watch               the same, live
  llama-collector scan                         read the models directories now (not while it runs)
  llama-collector status --json | jq .metrics  the same for programs
  llama-collector report --since 7d            a page with plots of the last week
  llama-collector prune                        delete what is beyond the limits now (not while it runs)
  llama-collector export --output all.sql      the database as SQL text, also while it runs
  llama-collector backup                       a backup now, also while it runs
  llama-collector restore --latest             put the newest good backup in place (not while it runs)
"""

_SERVICE_COMMANDS = {
    "install": "set up the systemd service, or bring it up to this version; as root",
    "uninstall": "stop and remove the service; settings and data stay; as root",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        the exit code: 0 done, 1 failed, 78 wrong settings (wrong use exits 2 by itself).
    """
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except SettingsError as error:
        for fault in error.faults:
            print(f"llama-collector: {fault}", file=sys.stderr)
        return EXIT_SETTINGS
    except CollectorError as error:
        print(f"llama-collector: {error}", file=sys.stderr)
        return EXIT_FAILED
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llama-collector",
        description="Passive historian of a llama.cpp host: samples llama-server, GPUs and the machine "
        "into one SQLite file.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="settings; else config/collector.toml, else /etc/llama-collector/collector.toml, else defaults",
    )
    parser.add_argument("--version", action="version", version=f"llama-collector {collector.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    commands.add_parser("run", help="collect in the foreground until SIGTERM or SIGINT").set_defaults(
        command=_run
    )
    check = commands.add_parser("check", help="check the settings and what they point at")
    check.add_argument("--as", dest="reader", metavar="USER", help="only whether USER can read the database")
    check.add_argument("--full", action="store_true", help="also read the whole database for damage")
    check.set_defaults(command=_check)
    commands.add_parser("scan", help="scan the models directories now").set_defaults(command=_scan)
    status = commands.add_parser("status", help="the newest readings, the jobs' health, sizes")
    form = status.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as one JSON object")
    form.add_argument("--watch", action="store_true", help="live, with short histories, until Ctrl-C")
    status.set_defaults(command=_status)
    report = commands.add_parser("report", help="a page with plots of a period, to open in any browser")
    report.add_argument(
        "--since",
        type=_seconds,
        default="24h",
        metavar="TIME",
        help="its length: 30m, 24h, 7d, 4w; 24h if not given",
    )
    report.add_argument("--output", type=Path, metavar="FILE.html", help="write it there")
    report.set_defaults(command=_report)
    prune = commands.add_parser("prune", help="delete the oldest rows beyond the limits now")
    prune.add_argument("--vacuum", action="store_true", help="then write the whole file anew, without gaps")
    prune.set_defaults(command=_prune)
    export = commands.add_parser("export", help="the whole database as SQL text")
    export.add_argument("--output", type=Path, metavar="FILE", help="write it there; else to standard output")
    export.add_argument("--force", action="store_true", help="replace FILE if it is there")
    export.set_defaults(command=_export)
    commands.add_parser("backup", help="back up the database now").set_defaults(command=_backup)
    restore = commands.add_parser("restore", help="put a backup in the place of the database, which is kept")
    which = restore.add_mutually_exclusive_group(required=True)
    which.add_argument("file", type=Path, nargs="?", metavar="FILE", help="the backup")
    which.add_argument("--latest", action="store_true", help="the newest backup that is good")
    which.add_argument("--list", action="store_true", help="only show the backups, and which are good")
    restore.set_defaults(command=_restore)
    for name, meaning in _SERVICE_COMMANDS.items():
        command = commands.add_parser(name, help=meaning)
        command.add_argument("--dry-run", action="store_true", help="only print the steps")
        command.set_defaults(command=_service, name=name)
    return parser


def _settings(options: argparse.Namespace) -> Settings:
    return load_settings(find_settings_file(options.config))


def _seconds(text: str) -> int:
    """Seconds of a length like 24h."""
    match = re.fullmatch(r"([1-9]\d{0,5})([mhdw])", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no length of time: write 30m, 24h, 7d or 4w")
    return int(match[1]) * {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}[match[2]]


def _run(options: argparse.Namespace) -> int:
    from collector.daemon.supervisor import run_until_signalled

    run_until_signalled(_settings(options), lambda: _settings(options))
    sys.stdout.flush()
    # A source that hangs in the kernel must not hold up the end: everything is committed and closed.
    os._exit(EXIT_DONE)


def _check(options: argparse.Namespace) -> int:
    from collector.commands.check import run_checks

    return EXIT_DONE if run_checks(options.config, options.reader, full=options.full) else EXIT_FAILED


def _service(options: argparse.Namespace) -> int:
    from collector.commands import install

    {"install": install.install, "uninstall": install.uninstall}[options.name](dry_run=options.dry_run)
    return EXIT_DONE


def _scan(options: argparse.Namespace) -> int:
    from collector.commands.scan import scan_now

    scan_now(_settings(options))
    return EXIT_DONE


def _report(options: argparse.Namespace) -> int:
    from collector.report import write_report

    write_report(_settings(options).database_path, options.since, options.output)
    return EXIT_DONE


def _prune(options: argparse.Namespace) -> int:
    from collector.commands.prune import prune_now

    prune_now(_settings(options), vacuum=options.vacuum)
    return EXIT_DONE


def _export(options: argparse.Namespace) -> int:
    from collector.commands.export import export

    export(_settings(options).database_path, options.output, force=options.force)
    return EXIT_DONE


def _backup(options: argparse.Namespace) -> int:
    from collector.commands.backup import back_up_now

    back_up_now(_settings(options))
    return EXIT_DONE


def _restore(options: argparse.Namespace) -> int:
    from collector.commands import restore

    settings = _settings(options)
    if options.list:
        restore.list_backups(settings)
    elif options.latest:
        restore.restore_latest(settings)
    else:
        restore.restore(settings, options.file)
    return EXIT_DONE


def _status(options: argparse.Namespace) -> int:
    settings = _settings(options)
    if options.watch:
        from collector.commands.watch import watch

        watch(settings.database_path, settings.sampling.interval)
    else:
        from collector.commands.status import print_status

        print_status(settings.database_path, as_json=options.json)
    return EXIT_DONE
