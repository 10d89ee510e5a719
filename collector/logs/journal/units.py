"""The names in `[logs] journal_units`, and the entries of the journal that each of them means."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_CONTAINER = "container:"


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of systemd, of the system or of a user; or a container whose output goes to the journal.

    Args:
        name: name of the unit with its ending, or of the container.
        is_container: whether it is a container.
    """

    name: str
    is_container: bool = False

    @classmethod
    def parse(cls, text: str) -> "Unit":
        """Return what a name in the settings means: `NAME.service`, `NAME`, or `container:NAME`."""
        if text.startswith(_CONTAINER):
            return cls(text.removeprefix(_CONTAINER), is_container=True)
        return cls(text if "." in text else f"{text}.service")

    @property
    def matches(self) -> list[str]:
        """Arguments of journalctl for what it wrote, and for what systemd wrote about it.

        The option --unit has no such entries of units of users. Alternatives are separated by `+`.
        """
        if self.is_container:
            return [f"CONTAINER_NAME={self.name}"]
        about = ("_PID=1 UNIT", "USER_UNIT", "_UID=0 COREDUMP_UNIT", "_UID=0 OBJECT_SYSTEMD_UNIT")
        fields = ("_SYSTEMD_UNIT", "_SYSTEMD_USER_UNIT", *about)
        return " + ".join(f"{field}={self.name}" for field in fields).split()

    @property
    def own_matches(self) -> list[str]:
        """Arguments of journalctl for what it wrote itself."""
        return self.matches[:3] if not self.is_container else self.matches

    def wrote(self, entry: Mapping[str, Any]) -> bool:
        """Return whether it wrote an entry itself."""
        if self.is_container:
            return bool(entry.get("CONTAINER_NAME") == self.name)
        return self.name in (entry.get("_SYSTEMD_UNIT"), entry.get("_SYSTEMD_USER_UNIT"))


def all_matches(units: list[Unit]) -> list[str]:
    """Return the arguments of journalctl for the entries of several units."""
    return " + ".join(" ".join(unit.matches) for unit in units).split(" ")
