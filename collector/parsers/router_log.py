"""What a router's log says of the processes of its models.

The router names models, and its children's lines have their port before them. The facts are those of builds
from December 2025 on; a build that prints something else is added to the patterns here.
"""

import re
from typing import NamedTuple

from collector.parsers.log.record import Record

_PROCESS = re.compile(
    r"srv +[\w()]+: (?:"
    r"spawning server instance with name=(?P<spawned>.+) on port (?P<port>\d{1,5})"
    r"|(?:models_max limit reached, removing|evicting idle) LRU "
    r"name=(?P<evicting>.+?)(?: for a queued request)?"
    r"|(?:stopping|unloading) model instance name=(?P<stopping>.+)"
    r"|instance name=(?P<exited>.+) exited with status (?P<status>-?\d{1,10})"
    r"|(?P<started>starting server in router mode)\b.*)$"
).match
_CHILD = re.compile(
    r"(?:(?:srv +\w+|main): (?P<loaded>model loaded)$"
    # After a sleep there is no `model loaded`: the slots are what the child prepares last.
    r"|srv +(?:load_model|init): (?P<initialized>initializing(?:, n_slots| slots))"
    r"|srv +handle_sleep\w*(?:\(\))?: "
    r"server is (?:(?P<sleeping>entering)|(?P<waking>exiting)) sleeping state)"
).match
_FIRST_WORDS = ("srv ", "main: model loaded")


class RouterEvent(NamedTuple):
    """A line about the process of a model.

    Args:
        event: started (the router), spawned, loaded, initialized, sleeping, waking, evicting, stopping,
            exited.
        model: its name on the router; None where the child writes, and of `started`.
        port: of the child; 0 where the line does not contain it.
        exit_code: of `exited`.
    """

    event: str
    model: str | None = None
    port: int = 0
    exit_code: int | None = None


def parse_router_event(record: Record) -> RouterEvent | None:
    """Return what a record tells of the process of a model; None for any other."""
    if not record.message.startswith(_FIRST_WORDS):
        return None
    if record.port:
        found = _CHILD(record.message)
        return RouterEvent(str(found.lastgroup), port=record.port) if found else None
    found = _PROCESS(record.message)
    if found is None:
        return None
    for event in ("spawned", "evicting", "stopping", "exited"):
        if found[event]:
            status = found["status"]
            return RouterEvent(event, found[event], int(found["port"] or 0), int(status) if status else None)
    return RouterEvent("started")
