"""Damage to a database file, as a failing disk leaves it."""

from pathlib import Path

PAGE_BYTES = 4096


def damage(path: Path) -> None:
    """Overwrite the middle third of the file, whole pages, behind SQLite's back."""
    pages = path.stat().st_size // PAGE_BYTES
    with path.open("r+b") as file:
        file.seek(pages // 3 * PAGE_BYTES)
        file.write(b"\xa5" * (max(1, pages // 3) * PAGE_BYTES))
