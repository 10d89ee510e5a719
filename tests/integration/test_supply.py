"""What users install: the wheel, on every Python that it supports, and its dependencies.

Where this machine has no Python 3.13 or 3.14, a Debian release that is downloaded once has them (as root).
The test of a version that is not available is skipped.
"""

import email
import json
import re
import shlex
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from email.message import Message
from pathlib import Path

import pytest

from tests.support.gguf_files import write_tiny_llama
from tests.support.paths import ROOT
from tests.support.pythons import NoSuchPython, find_python

REQUIREMENTS = ROOT / "tests" / "requirements.txt"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
AUDIT = "pip-audit==2.10.1"

pytestmark = pytest.mark.slow


def run(*command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert ended.returncode == 0 or not check, f"{command}: {ended.stdout[-2000:]}{ended.stderr[-2000:]}"
    return ended


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source archive, built from the repository."""
    directory = tmp_path_factory.mktemp("built")
    venv.create(directory / "environment", with_pip=True)
    python = directory / "environment" / "bin" / "python"
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    run(python, "-m", "pip", "install", "-q", *requires)
    run(python, "-m", "hatchling", "build", "-d", directory / "dist")
    (source,) = (directory / "dist").glob("*.tar.gz")
    with tarfile.open(source) as packed:
        packed.extractall(directory / "unpacked", filter="data")
    (unpacked,) = (directory / "unpacked").iterdir()
    subprocess.run(
        [python, "-m", "hatchling", "build", "-t", "wheel", "-d", directory / "again"],
        cwd=unpacked,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return directory


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (wheel,) = (built / "dist").glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as packed:
        (name,) = [name for name in packed.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_string(packed.read(name).decode())


def content(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as packed:
        return {name: packed.read(name) for name in packed.namelist()}


def tree(folder: str) -> dict[str, bytes]:
    """Return the files of a folder of the repository, without Python's caches."""
    return {
        str(path.relative_to(ROOT)): path.read_bytes()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_contains_the_package_and_what_install_copies_and_nothing_else(wheel: Path) -> None:
    files = content(wheel)
    own = f"llama_collector-{PROJECT['version']}"
    shared = tree("systemd") | {"config/collector.toml": (ROOT / "config" / "collector.toml").read_bytes()}
    expected = tree("collector") | {
        f"{own}.data/data/share/llama-collector/{name}": data for name, data in shared.items()
    }
    assert {
        name: data for name, data in files.items() if not name.startswith(f"{own}.dist-info/")
    } == expected
    assert "collector/py.typed" in files, "the classifier Typing :: Typed says so"
    assert b"llama-collector = collector.cli:main" in files[f"{own}.dist-info/entry_points.txt"]


def test_the_source_archive_builds_the_same_wheel_and_contains_the_tests(built: Path, wheel: Path) -> None:
    (again,) = (built / "again").glob("*.whl")
    assert content(again) == content(wheel)
    (source,) = (built / "dist").glob("*.tar.gz")
    with tarfile.open(source) as packed:
        names = {name.split("/", 1)[1] for name in packed.getnames() if "/" in name}
    assert {
        "README.md",
        "pyproject.toml",
        "tests/requirements.txt",
        "tests/integration/test_supply.py",
    } <= names
    assert not [name for name in names if name.endswith((".pyc", ".db"))]


def test_the_metadata_is_complete(metadata: Message) -> None:
    assert metadata["Name"] == "llama-collector"
    version = re.search(r'__version__ = "(.+)"', (ROOT / "collector" / "__init__.py").read_text())
    assert version
    assert metadata["Version"] == version[1]
    assert 20 < len(metadata["Summary"]) < 120
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload() == (ROOT / "README.md").read_text()
    assert len(metadata["Keywords"].split(",")) >= 4
    classifiers = metadata.get_all("Classifier", [])
    assert {f"Programming Language :: Python :: {python}" for python in PYTHONS} <= set(classifiers)
    for kind in ("Development Status", "Environment", "Intended Audience", "Operating System", "Topic"):
        assert [text for text in classifiers if text.startswith(f"{kind} ::")], kind


@pytest.mark.parametrize("version", PYTHONS)
def test_the_wheel_collects_on_python(version: str, wheel: Path, tmp_path: Path) -> None:
    try:
        python = find_python(version, tmp_path)
    except NoSuchPython as error:
        pytest.skip(str(error))
    run(sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:", f"--python-version={version}",
        "-d", tmp_path / "wheels", wheel)  # fmt: skip
    script = tmp_path / "use_wheel.py"
    script.write_text((ROOT / "tests" / "support" / "use_wheel.py").read_text())
    for folder in ("models", "scratch"):
        (tmp_path / folder).mkdir()
    write_tiny_llama(tmp_path / "models" / "tiny.gguf")
    printed = python.run(script, tmp_path / "wheels", tmp_path / "models", tmp_path / "scratch")
    assert printed.startswith(f"{version}.")


def test_every_locked_package_has_its_hashes_and_the_readme_requires_them() -> None:
    text = REQUIREMENTS.read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    assert len(lines) > 20
    for line in lines:
        assert re.match(r"[a-z0-9][a-z0-9._-]*==\S+( ;.*)? .*--hash=sha256:[0-9a-f]{64}", line), line
    command = "pip install --require-hashes -r tests/requirements.txt"
    assert command in (ROOT / "README.md").read_text()
    run(sys.executable, "-m", *shlex.split(command), "--dry-run", "--no-deps", "--ignore-installed", "-q")


def test_no_locked_package_has_a_known_vulnerability(tmp_path: Path) -> None:
    venv.create(tmp_path, with_pip=True)
    run(tmp_path / "bin" / "python", "-m", "pip", "install", "-q", AUDIT)
    ended = run(tmp_path / "bin" / "pip-audit", "--require-hashes", "--disable-pip", "--progress-spinner=off",
                "--format=json", "-r", REQUIREMENTS, check=False)  # fmt: skip
    try:
        packages = json.loads(ended.stdout)["dependencies"]
    except ValueError:
        pytest.skip(f"pip-audit cannot reach the advisories: {ended.stderr[-300:]}")
    if all("skip_reason" in package for package in packages):
        pytest.skip("pip-audit cannot reach the advisories: the package index answers without them")
    assert [package for package in packages if "skip_reason" in package or package["vulns"]] == []
