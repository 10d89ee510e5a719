"""Pages as a person sees them: headless Chromium loads them and runs their scripts."""

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
VIRTUAL_MILLISECONDS = 30_000
"""Of the page's own clock, which stands still while it waits for the network."""


@dataclass(frozen=True, slots=True)
class Page:
    """A page after its scripts have run.

    Args:
        html: all of it.
        console: what it printed there: errors of scripts, files that did not load, warnings.
    """

    html: str
    console: tuple[str, ...]


def browse(url: str) -> Page:
    """Load a page and let it come to rest."""
    ended = _chromium("--dump-dom", "--enable-logging=stderr", url)
    return Page(ended.stdout, tuple(re.findall(r":CONSOLE[:(]\d+\)?\] (.*)", ended.stderr)))


def take_picture(url: str, file: Path, width: int, height: int) -> None:
    """Save what a window of that size shows of a page, as PNG."""
    _chromium(f"--screenshot={file}", f"--window-size={width},{height}", "--hide-scrollbars", url)


def _chromium(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = next((found for name in PROGRAMS if (found := shutil.which(name))), None)
    assert program, "install chromium-headless-shell (Debian), or Chromium under another name"
    with tempfile.TemporaryDirectory() as profile:
        command = [
            program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={profile}",
            f"--virtual-time-budget={VIRTUAL_MILLISECONDS}", *arguments,
        ]  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
