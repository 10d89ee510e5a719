"""The command line."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import collector
from collector.config import Settings, find_settings_file, load_settings
from collector.errors import CollectorError, SettingsError

EXIT_DONE, EXIT_FAILED, EXIT_SETTINGS = 0, 1, 78

_EXAMPLES = """\
examples:
  llama-collector run                          collect until Ctrl-C
  llama-collector --config my.toml check       look at the settings and what they point at
  llama-collector status                       the newest readings
  llama-collector scan                         read the models directories now (not while it runs)
  llama-collector status --json | jq .metrics  the same for programs
"""


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
    commands.add_parser("check", help="check the settings and what they point at").set_defaults(
        command=_check
    )
    commands.add_parser("scan", help="scan the models directories now").set_defaults(command=_scan)
    status = commands.add_parser("status", help="the newest readings, the jobs' health, sizes")
    status.add_argument("--json", action="store_true", help="as one JSON object")
    status.set_defaults(command=_status)
    return parser


def _settings(options: argparse.Namespace) -> Settings:
    return load_settings(find_settings_file(options.config))


def _run(options: argparse.Namespace) -> int:
    from collector.daemon import run_until_signalled

    run_until_signalled(_settings(options))
    sys.stdout.flush()
    # A source that hangs in the kernel must not hold up the end: everything is committed and closed.
    os._exit(EXIT_DONE)


def _check(options: argparse.Namespace) -> int:
    from collector.check import run_checks

    return EXIT_DONE if run_checks(options.config) else EXIT_FAILED


def _scan(options: argparse.Namespace) -> int:
    from collector.scan import scan_now

    scan_now(_settings(options))
    return EXIT_DONE


def _status(options: argparse.Namespace) -> int:
    from collector.status import print_status

    print_status(_settings(options).database_path, as_json=options.json)
    return EXIT_DONE
