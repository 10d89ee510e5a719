"""Damage a database file as a failing disk does."""

from pathlib import Path

PAGE_BYTES = 4096


def damage(path: Path) -> None:
    """Overwrite the pages in the middle third of the file without SQLite."""
    pages = path.stat().st_size // PAGE_BYTES
    with path.open("r+b") as file:
        file.seek(pages // 3 * PAGE_BYTES)
        file.write(b"\xa5" * (max(1, pages // 3) * PAGE_BYTES))
