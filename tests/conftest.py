"""Fixtures that more than one room of the tests uses."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, settings

from collector.database import Database
from tests.support.gguf_files import write_tiny_llama
from tests.support.nvml_stub import NvmlStub
from tests.support.recorded import collecting, wait_for_everything

# A busy machine is no fault, and whether a change passes is no matter of luck: chance is what tests/fuzz is for.
settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("repeatable")

# Shells start what runs in the background with SIGINT ignored, and so would every program of the tests.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _unset_events() -> Iterator[None]:
    """What one test sets up for its events is not the next one's."""
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
