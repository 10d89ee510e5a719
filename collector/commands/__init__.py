"""The commands of the command line: each has a module with its arguments and its action.

The module of a command has two functions:

    add_arguments(parser)    declares the arguments of the command
    run(options)             runs the command and returns the exit code: 0 for success, 1 for failure

A module is imported only when its command is used: `--help` imports none, and `status` does not import the
libraries of `scan`. To add a command, add its module and an entry in `COMMANDS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Command:
    """An entry of the list of commands in `--help`.

    Args:
        name: its name on the command line.
        module: the name of its module in this package.
        help: what it does, on one line.
        examples: arguments after the program's name, each with its meaning.
    """

    name: str
    module: str
    help: str
    examples: Mapping[str, str] = field(default_factory=dict)


COMMANDS = (
    Command(
        "check",
        "check",
        "check the settings and what they name",
        {"--config my.toml check": "check the settings and everything that they name"},
    ),
    Command(
        "scan",
        "scan",
        "scan the models directories now",
        {"scan": "read the models directories now (not while it runs)"},
    ),
    Command(
        "status",
        "status",
        "show the newest readings, the states of sources and jobs, sizes",
        {
            "status": "the newest readings",
            "status --watch": "the same, live",
            "status --json | jq .metrics": "the same for programs",
        },
    ),
    Command(
        "requests",
        "requests",
        "show the requests that llama-server answered, with their times and tokens",
        {
            "requests": "those of the last hour",
            "requests --since 1d --slow": "the slowest of a day",
            "requests --failed --since 1w": "the failed ones of a week",
        },
    ),
    Command(
        "import",
        "import_requests",
        "add the requests of old logs: files, also compressed ones, or a unit of the journal",
        {
            "import llama.log.1 llama.log.2.gz": "add the requests of these logs (not while it runs)",
            "import --journal llama-server --since 30d": "add those of a unit in the journal",
        },
    ),
    Command(
        "report",
        "report",
        "write a page with plots of a period, to open in any browser",
        {"report --since 7d": "a page with plots of the last week"},
    ),
    Command(
        "prune",
        "prune",
        "delete the oldest rows beyond the limits now",
        {"prune": "delete what is beyond the limits now (not while it runs)"},
    ),
    Command(
        "export",
        "export",
        "write the whole database as SQL text",
        {"export --output all.sql": "the database as SQL text, also while it runs"},
    ),
    Command("backup", "backup", "back up the database now", {"backup": "a backup now, also while it runs"}),
    Command(
        "restore",
        "restore",
        "replace the database by a backup; the old database is kept",
        {"restore --latest": "replace the database by the newest good backup (not while it runs)"},
    ),
    Command(
        "install",
        "install",
        "set up the systemd service, or bring it up to this version; as root",
        {"install --dry-run": "print the steps that set up the systemd service"},
    ),
    Command(
        "uninstall",
        "install",
        "stop and remove the service; settings and data stay; as root",
    ),
)
"""All commands but `run`, in the order of `--help`; `collector.cli` adds `run`, which needs the daemon."""
