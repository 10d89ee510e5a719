"""Fixtures and hooks that more than one package of the tests uses."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, settings

from collector.database import Database
from tests.support import llama_build, namespaces
from tests.support.gguf_files import write_tiny_llama
from tests.support.nvml_stub import NvmlStub
from tests.support.paths import ROOT
from tests.support.recorded import collecting, wait_for_everything

# A slow machine is not a fault, and the same change gives the same result each time: tests/fuzz tries random inputs.
settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("repeatable")

# A shell starts a background job with SIGINT ignored, and every program that a test starts would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it, and a collector leaves that as it finds it

NAMESPACES = ("tests/sources/llama/test_processes.py",)  # starts processes of one name and counts them
"""Files whose tests all have the marker `namespaces`."""

QUIET = ("tests/integration/test_logs.py",)  # no sample is late while 50,000 lines a second are written
"""Files whose tests all have the marker `quiet`."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return how many workers run the tests where the command line says nothing else.

    The whole suite has three for two cores, because most tests wait for a clock or another process. A part of it (`pytest tests/daemon`) has none: it starts sooner, prints at once, and stops at a
    `breakpoint()`.
    """
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS or config.option.keyword:
        return 0
    return max(2, min(8, (os.cpu_count() or 1) * 3 // 2))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        file = item.path.relative_to(ROOT).as_posix()
        if file in NAMESPACES:
            item.add_marker("namespaces")
        if file in QUIET:
            item.add_marker("quiet")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run the body of a test with the marker `namespaces` there; None where it runs as usual."""
    wanted = pyfuncitem.get_closest_marker("namespaces") and not pyfuncitem.config.option.usepdb
    if not wanted or not namespaces.are_available():
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    namespaces.run_in_namespaces(lambda: pyfuncitem.obj(**arguments))
    return True


@pytest.fixture(autouse=True)
def _reset_events() -> Iterator[None]:
    """Reset structlog, which a test may have configured."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(tmp_path / "data" / "llama-dashboard.db") as opened:
        yield opened


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama of 450 KB that the real server loads in milliseconds."""
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    write_tiny_llama(path)
    return path


@pytest.fixture(scope="session")
def llama_server_program() -> Path:
    """The current llama-server, built from source: with router mode, which the one in the wheel does not have."""
    return llama_build.llama_server_program(llama_build.CURRENT)


@pytest.fixture
def public_path() -> Iterator[Path]:
    """A directory that every user may enter; pytest makes the parents of `tmp_path` private at each start."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        path.chmod(0o755)
        yield path


@pytest.fixture
def foreign_llama_server(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the machine that is called llama-server and has nothing to do with the test."""
    sleep = shutil.which("sleep")
    assert sleep
    program = tmp_path / "foreign" / "llama-server"
    program.parent.mkdir()
    shutil.copy(sleep, program)
    with subprocess.Popen([program, "600"]) as process:
        yield process
        process.kill()


@pytest.fixture
def nvml_stub(tmp_path: Path) -> NvmlStub:
    """NVIDIA's library without a GPU."""
    directory = tmp_path / "nvml"
    directory.mkdir()
    return NvmlStub(directory)


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A database that a collector wrote beside a real llama-server, and has closed."""
    with collecting(tmp_path_factory.mktemp("recorded"), tiny_model) as (collector, server):
        wait_for_everything(collector, server)
    return collector.database
