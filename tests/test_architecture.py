"""The house as `collector/` promises it: each layer imports only from those before it."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "collector"

LAYERS: list[set[str]] = [
    {"errors", "table", "units", "schedule", "progress"},
    {"config", "parsers", "database", "events", "service", "readers"},
    {"health", "signals"},
    {"sources", "jobs"},
    {"sampler", "log_poller", "heartbeat", "own_tables", "views", "check", "status"},
    {"maintenance"},
    {"daemon", "scan", "prune", "export", "backup", "restore", "install", "report", "watch"},
    {"lifecycle"},
    {"cli"},
    {"__main__"},
]
ONLY_IMPORTER = {
    "apscheduler": {"daemon", "schedule"},
    "pynvml": {"sources/gpu"},
    "httpcore": {"sources/llama_http", "sources/bounded_network"},
    "httpx": {"sources/llama_http"},
    "gguf": {"jobs/header_child"},
    "pygal": {"report/plots"},
}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(path: Path) -> str:
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
def test_a_room_imports_only_from_the_layers_before_it(path: Path) -> None:
    for name in imported(path):
        parts = name.split(".")
        if (
            parts[0] == "collector"
            and len(parts) > 1
            and (PACKAGE / parts[1]).exists() | (PACKAGE / f"{parts[1]}.py").exists()
        ):
            assert parts[1] == room(path) or layer(parts[1]) < layer(room(path)), name


@pytest.mark.parametrize("library", ONLY_IMPORTER)
def test_a_library_has_one_importer(library: str) -> None:
    importers = {
        str(path.relative_to(PACKAGE).with_suffix(""))
        for path in modules()
        if any(name.split(".")[0] == library for name in imported(path))
    }
    assert importers <= ONLY_IMPORTER[library]


def test_only_one_file_opens_the_database() -> None:
    assert [p.name for p in modules() if "sqlite3.connect(" in p.read_text()] == ["connection.py"]


def test_no_broad_except_stands_outside_the_one_observer() -> None:
    broad = [
        str(path.relative_to(PACKAGE))
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id == "Exception"))
    ]
    assert broad == ["health.py"]
