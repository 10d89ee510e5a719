"""Mutation testing: do the tests notice when one place of the code is changed?

Usage: pip install 'mutmut>=3.8,<4'
       python -m tests.mutation [--count 60] [--seed 1] [PACKAGE ...]

Of each package a random sample of mutants is tested, without those that change only words of a message, each against the tests of its package that execute the
changed function. mutmut makes the mutants; it is not among the packages of the tests, because only this
program needs it. Prints how many survived, and what was changed in these.
"""

import argparse
import importlib.util
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from tests.support.paths import ROOT

TESTS = {
    "database": ["tests/database", "tests/trouble/test_foreign_objects.py", "tests/trouble/test_locks.py"],
    "logs": ["tests/logs", "tests/trouble/test_log_files.py", "tests/trouble/test_journal.py"],
    "backups": [
        "tests/backups",
        "tests/trouble/test_backups.py",
        "tests/commands/test_export.py",
        "tests/commands/test_restore.py",
    ],
    "history": ["tests/history", "tests/trouble/test_retention.py"],
}
"""The tests of each package."""

_SETTINGS = """
[tool.mutmut]
source_paths = ["collector"]
only_mutate = ["collector/{package}/*"]
also_copy = ["config", "systemd", "data", "README.md"]
pytest_add_cli_args = ["-n", "0", "-p", "no:cacheprovider"]
pytest_add_cli_args_test_selection = {tests}
"""

_SURVIVED = (0, 33)
"""Exit codes in mutmut's files: all tests passed; no test executes the function."""


def main() -> int:
    """Test a sample of mutants of each package; return 1 if more than a tenth of them survived."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("packages", nargs="*", metavar="PACKAGE", help=", ".join(TESTS), default=[])
    parser.add_argument("--count", type=int, default=60, help="mutants of each package")
    parser.add_argument("--seed", type=int, default=1, help="of the random sample")
    arguments = parser.parse_args()
    if importlib.util.find_spec("mutmut") is None:
        parser.error("mutmut is not installed: pip install 'mutmut>=3.8,<4'")
    packages = arguments.packages or list(TESTS)
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(2) as pool:
        parts = [
            pool.submit(test_package, package, Path(directory), arguments.count, arguments.seed)
            for package in packages
        ]
        results = dict(zip(packages, (part.result() for part in parts), strict=True))
    tested = survived = 0
    for package, (mutants, survivors) in results.items():
        print(f"{package}: {len(survivors)} of {mutants} survived")
        tested, survived = tested + mutants, survived + len(survivors)
        for name, difference in survivors.items():
            print(f"\n{name}\n{difference}")
    print(f"together: {survived} of {tested} survived, {survived / tested:.1%}")
    return int(survived > tested / 10)


def test_package(package: str, directory: Path, count: int, seed: int) -> tuple[int, dict[str, str]]:
    """Test a sample of the mutants of a package, in a copy of the checkout.

    Returns:
        number of mutants that were tested, and the change of each that survived, by its name.
    """
    tree = directory / package
    copy_checkout(tree)
    with (tree / "pyproject.toml").open("a") as settings:
        settings.write(_SETTINGS.format(package=package, tests=json.dumps(TESTS[package])))
    run_mutmut(tree, "run", "makes-the-mutants-and-tests-none")
    names = sorted(exit_codes(tree))
    random.Random(seed).shuffle(names)
    drawn = (name for name in names if not changes_only_words(run_mutmut(tree, "show", name)))
    sample = list(islice(drawn, count))
    output = run_mutmut(tree, "run", "--max-children", "1", *sample)
    codes = exit_codes(tree)
    untested = [name for name in sample if codes[name] is None]
    if untested:
        raise SystemExit(f"mutmut did not test {len(untested)} mutants of {package}:\n{output[-3000:]}")
    return len(sample), {name: run_mutmut(tree, "show", name) for name in sample if codes[name] in _SURVIVED}


def changes_only_words(difference: str) -> bool:
    """Return whether a mutant changes only the words of a message, or the case of SQL's keywords."""
    before, after = (
        "\n".join(line[1:] for line in difference.splitlines() if re.match(rf"\{sign}(?!\{sign})", line))
        for sign in "-+"
    )
    return before.lower() == after.replace("XX", "").lower()


def copy_checkout(tree: Path) -> None:
    """Copy the files that git knows."""
    listing = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z"], check=True, capture_output=True, text=True
    )
    for name in filter(None, listing.stdout.split("\0")):
        if (source := ROOT / name).is_file():
            target = tree / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


def run_mutmut(tree: Path, *arguments: str) -> str:
    """Run mutmut in a checkout and return what it printed, without its progress."""
    command = [sys.executable, "-m", "mutmut", *arguments]
    result = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    lines = (line.rpartition("\r")[2] for line in result.stdout.splitlines())
    return "\n".join([*lines, result.stderr])


def exit_codes(tree: Path) -> dict[str, int | None]:
    """Return mutmut's exit code of each mutant; None if it was not tested."""
    codes: dict[str, int | None] = {}
    for path in (tree / "mutants").rglob("*.meta"):
        codes |= json.loads(path.read_text())["exit_code_by_key"]
    return codes


if __name__ == "__main__":
    sys.exit(main())
