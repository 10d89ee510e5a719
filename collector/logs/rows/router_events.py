"""The table `router_events`: what routers' logs say of their models, for the rows of `model_events`."""

from collections.abc import Sequence
from typing import NamedTuple

from collector.logs.position import Models
from collector.parsers.log.record import Record
from collector.parsers.router_log import parse_router_event
from collector.schema import AUTOMATIC_ID, Column, Row, Table

ROUTER_EVENTS = Table(
    "router_events",
    "Lines of routers' logs about the processes of models, until `model_events` contains what they say. Only "
    "the newest of each model are kept.",
    (
        Column("id", AUTOMATIC_ID, "key", "ascending, in the order of the lines"),
        Column("log", "TEXT NOT NULL", "key", "log_positions.name"),
        Column("model", "TEXT", "label", "name of the model on its router; NULL = not known, or the router"),
        Column("port", "INTEGER", "label", "of the router's child; NULL = the line does not contain it"),
        Column(
            "event",
            "TEXT NOT NULL",
            "label",
            "started (the router), spawned, loaded, initialized, sleeping, waking, evicting, stopping, "
            "exited",
        ),
        Column("exit_code", "INTEGER", "label", "of the process, after exited"),
        Column("occurred_at", "REAL NOT NULL", "time", "Unix seconds of the line"),
        Column("merged", "INTEGER", "state", "1 = model_events contains it, NULL = not yet"),
    ),
)


class LogOfRouter(NamedTuple):
    """A log.

    Args:
        name: of its position.
        is_live: whether its lines have just been written: then the time at which one without a stamp was
            read is its time.
    """

    name: str
    is_live: bool


def router_event_rows(
    records: Sequence[Record], moments: Sequence[float], models: Models, log: LogOfRouter
) -> list[Row]:
    """Return rows of `router_events`.

    Args:
        records: of a log, in their order.
        moments: Unix seconds of each.
        models: of the router's children before these records, by port.
        log: where they stand.
    """
    rows: list[Row] = []
    spawned: dict[int, str] = {}
    for record, moment in zip(records, moments, strict=True):
        event = parse_router_event(record)
        if event is None or not (log.is_live or record.stamp is not None or record.time is not None):
            continue
        if event.model and event.port:
            spawned[event.port] = event.model
        model = event.model or spawned.get(event.port) or models.get(event.port)
        if model is None and event.port:
            continue
        rows.append(
            ROUTER_EVENTS.row(
                {
                    "log": log.name,
                    "model": model,
                    "port": event.port or None,
                    "event": event.event,
                    "exit_code": event.exit_code,
                    "occurred_at": round(moment, 3),
                }
            )
        )
    return rows
