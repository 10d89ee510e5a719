"""Pages as a browser shows them: headless Chromium loads them and runs their scripts."""

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
VIRTUAL_MILLISECONDS = 30_000
"""Of the page's own clock, which stops while the page waits for the network."""


@dataclass(frozen=True, slots=True)
class Page:
    """A page after its scripts have run.

    Args:
        html: all of it.
        console: messages of the browser console: errors of scripts, files that did not load, warnings.
    """

    html: str
    console: tuple[str, ...]


def browse(url: str) -> Page:
    """Load a page, run its scripts until nothing is left to do, and return it."""
    ended = _chromium("--dump-dom", "--enable-logging=stderr", url)
    return Page(ended.stdout, tuple(re.findall(r":CONSOLE[:(]\d+\)?\] (.*)", ended.stderr)))


def take_picture(url: str, file: Path, width: int, height: int) -> None:
    """Save a picture of a page in a window of that size, as PNG."""
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
