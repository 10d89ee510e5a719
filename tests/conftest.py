"""Fixtures that more than one room of the tests uses."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.database import Database
from tests.support.gguf_files import write_tiny_llama
from tests.support.nvml_stub import NvmlStub


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
