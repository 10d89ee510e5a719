"""The command line: the parser, the call of one command, and the exit codes of errors."""

import argparse
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import collector
from collector.commands import COMMANDS
from collector.errors import CollectorError, SettingsError
from collector.output import open_missing_streams
from collector.settings import Settings, find_settings_file, load_settings
from collector.text import say

EXIT_OK, EXIT_FAILED, EXIT_SETTINGS = 0, 1, 78

_RUN_EXAMPLES = {"run": "collect until Ctrl-C"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the arguments after the program's name; None for those of this process.

    Returns:
        The exit code: 0 for success, 1 for failure, 78 for wrong settings. For wrong usage, argparse exits
        with 2.
    """
    words = sys.argv[1:] if arguments is None else arguments
    open_missing_streams()
    try:
        try:
            options = build_parser(words).parse_args(words)
            return int(options.run(options))
        finally:
            sys.stdout.flush()  # at the end of the process an error would be a traceback, and exit code 120
    except SettingsError as error:
        _print_errors(*error.faults)
        return EXIT_SETTINGS
    except CollectorError as error:
        _print_errors(str(error))
        return EXIT_FAILED
    except BrokenPipeError:  # the reader of the output, such as `head`, has ended
        _discard_output()
        return EXIT_FAILED
    except OSError as error:  # the disk is full, or a file cannot be read that no command expects to fail
        _print_errors(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
        _discard_output()
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_FAILED


def _print_errors(*texts: str) -> None:
    """Print one line for each text on standard error; that may be closed or full as well."""
    with suppress(OSError, ValueError):
        for text in texts:
            say(f"llama-collector: {text}", error=True)


def _discard_output() -> None:
    """Let standard output lead nowhere, so that what it still holds does not fail again at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def build_parser(words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Build the parser of the command line.

    Args:
        words: the command line. Only the commands in it are imported and get their arguments, because
            importing all of them needs several times as long as `status`.
    """
    parser = argparse.ArgumentParser(
        prog="llama-collector",
        description="Passive historian of a llama.cpp host: samples llama-server, GPUs and the machine "
        "into one SQLite file.",
        epilog=_epilog(_RUN_EXAMPLES, *(command.examples for command in COMMANDS)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_config_option(parser, default=None)
    parser.add_argument("--version", action="version", version=f"llama-collector {collector.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command")

    def add_command(name: str, meaning: str, examples: Mapping[str, str]) -> argparse.ArgumentParser:
        command_parser = commands.add_parser(
            name,
            help=meaning,
            description=meaning,
            epilog=_epilog(examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        # The option is valid after the command too: a default would overwrite a value before the command.
        _add_config_option(command_parser, default=argparse.SUPPRESS)
        return command_parser

    run_parser = add_command("run", "collect in the foreground until SIGTERM or SIGINT", _RUN_EXAMPLES)
    run_parser.set_defaults(run=_run_daemon)
    for command in COMMANDS:
        command_parser = add_command(command.name, command.help, command.examples)
        if command.name in words:
            module = importlib.import_module(f"collector.commands.{command.module}")
            module.add_arguments(command_parser)
            command_parser.set_defaults(run=module.run)
    return parser


def _add_config_option(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        default=default,
        help="settings file; default: config/collector.toml, else /etc/llama-collector/collector.toml, "
        "else no file",
    )


def _epilog(*examples: Mapping[str, str]) -> str:
    """Return the examples as the last lines of a help text."""
    lines = [
        f"  {f'llama-collector {line}':<44} {meaning}"
        for meanings in examples
        for line, meaning in meanings.items()
    ]
    return "\n".join(["examples:", *lines]) if lines else ""


def _run_daemon(options: argparse.Namespace) -> int:
    """Run the daemon until a signal stops it, then end the process."""
    from collector.daemon.supervisor import run_until_signalled

    def read_settings() -> Settings:
        return load_settings(find_settings_file(options.config))

    run_until_signalled(read_settings(), read_settings)
    # Do not wait for the thread of a source that hangs in the kernel: everything is committed and closed.
    os._exit(EXIT_OK)
