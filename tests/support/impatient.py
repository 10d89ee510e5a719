"""A real collector with shorter timeouts, for situations that would otherwise take minutes."""

import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.collector import Collector

_LAUNCHER = """
import ast, pkgutil, sys
for name, value in ast.literal_eval(sys.argv.pop(1)).items():
    owner, constant = name.rsplit(".", 1)
    assert hasattr(pkgutil.resolve_name(owner), constant), name
    setattr(pkgutil.resolve_name(owner), constant, value)
from collector.cli import main
sys.exit(main())
"""


class ImpatientCollector(Collector):
    """A collector in which some constants of the program have other values.

    Args:
        directory: directory of settings and database.
        settings: TOML text without the path of the database.
        constants: literal values by the full names of the constants.
        environment: environment of the process; None for that of the test.
    """

    def __init__(
        self,
        directory: Path,
        settings: str,
        constants: Mapping[str, object],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(directory, settings, environment)
        self._constants = dict(constants)

    def command(self, *arguments: str) -> list[str]:
        _python, _module, _name, *rest = super().command(*arguments)
        return [sys.executable, "-c", _LAUNCHER, repr(self._constants), *rest]
