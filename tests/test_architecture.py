"""The architecture as `collector/README.md` describes it: imports go one way."""

import ast
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from collector.catalog import open_database
from collector.commands import COMMANDS
from collector.database.documented import METRICS

PACKAGE = Path(__file__).parents[1] / "collector"

LAYERS: list[set[str]] = [
    {"errors", "schema", "text"},
    {"events", "output"},
    {"parsers", "views", "database"},
    {"settings"},
    {"health"},
    {"sources", "logs", "models", "backups", "history", "report"},
    {"catalog"},
    {"daemon", "commands"},
    {"cli"},
    {"__main__"},
]
"""A package imports from layers above its own line, and from itself."""

LIBRARIES: dict[str, set[str]] = {
    "apscheduler": {"daemon"},
    "cronsim": {"parsers"},
    "pynvml": {"sources"},
    "httpcore": {"sources"},
    "httpx": {"sources"},
    "gguf": {"models"},
    "pygal": {"report"},
}
"""The only packages that import a library."""

MAX_MODULES_AT_THE_TOP, MAX_MODULES, MAX_LINES = 12, 15, 400


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def package_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def layer(name: str) -> int:
    return next(number for number, names in enumerate(LAYERS) if name in names)


def imported(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_package_imports_only_from_the_layers_before_it(path: Path) -> None:
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "collector" and len(parts) > 1 and parts[1] != "__version__":
            assert parts[1] == package_of(path) or layer(parts[1]) < layer(package_of(path)), name


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_is_imported_by_its_packages_only(library: str) -> None:
    importers = {
        package_of(path)
        for path in modules()
        if any(name.split(".")[0] == library for name in imported(path))
    }
    assert importers <= LIBRARIES[library]


def test_no_package_has_too_many_modules() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= MAX_MODULES_AT_THE_TOP
    for directory in {path.parent for path in modules()} - {PACKAGE}:
        assert len(list(directory.glob("*.py"))) <= MAX_MODULES, directory


def test_a_long_file_states_the_reason() -> None:
    for path in modules():
        if len(path.read_text().splitlines()) > MAX_LINES:
            assert "Long because" in (ast.get_docstring(ast.parse(path.read_text())) or ""), path


def test_only_one_file_opens_the_database() -> None:
    assert [p.name for p in modules() if "sqlite3.connect(" in p.read_text()] == ["connection.py"]


def test_all_error_classes_are_in_one_file() -> None:
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and path.name != "errors.py":
                bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                assert not any(base.endswith(("Error", "Exception")) for base in bases), (path, node.name)


def test_only_the_observer_catches_every_exception() -> None:
    broad = [
        str(path.relative_to(PACKAGE))
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id == "Exception"))
    ]
    assert broad == ["health.py"]


DAEMON_LIBRARIES = {"httpx", "psutil", "apscheduler", "structlog"}


@pytest.mark.parametrize(
    "module", ["commands.status", "commands.export", "commands.watch", "report.page", "settings"]
)
def test_what_only_reads_starts_without_the_libraries_of_the_daemon(module: str) -> None:
    script = f"import sys, collector.{module}; print(*sorted(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(ended.stdout.split())
    assert loaded.isdisjoint(DAEMON_LIBRARIES)


PRINT_MODULES_AT_EXIT = """
import atexit, sys
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
from collector.cli import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def settings_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a settings file that sets a schedule of backups, and names a small database."""
    directory = tmp_path_factory.mktemp("small")
    with open_database(directory / "small.db") as database, database.transaction() as connection:
        connection.execute(METRICS.insert_statement, METRICS.row({"timestamp": 1, "cpu_usage": 5.0}))
    file = directory / "collector.toml"
    file.write_text(f'[database]\npath = "{directory}/small.db"\n[backup]\nschedule = "30 3 * * mon-fri"\n')
    return file


@pytest.mark.parametrize(
    "command",
    [
        "status",
        "status --json",
        "status --watch",
        "export",
        "export --output all.sql",
        "report --since 9999w",
    ],
)
def test_a_command_that_only_reads_needs_no_library_of_the_daemon(settings_file: Path, command: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PRINT_MODULES_AT_EXIT, "--config", str(settings_file), *command.split()],
        cwd=settings_file.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    if "--watch" in command:
        assert "every" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    loaded = set(errors.split())
    assert (process.returncode, "collector.settings" in loaded) == (0, True), errors
    assert loaded.isdisjoint(DAEMON_LIBRARIES)


def test_help_imports_no_command() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PRINT_MODULES_AT_EXIT, "--help"], capture_output=True, text=True, check=True
    )
    loaded = set(ended.stderr.split())
    assert "collector.commands" in loaded
    assert loaded.isdisjoint({"sqlite3", "pygal", *DAEMON_LIBRARIES})
    assert loaded.isdisjoint({f"collector.commands.{command.module}" for command in COMMANDS})


def test_every_command_has_a_module_with_its_arguments_and_what_it_does() -> None:
    for command in COMMANDS:
        tree = ast.parse((PACKAGE / "commands" / f"{command.module}.py").read_text())
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert {"add_arguments", "run"} <= functions, command
