"""The collector's own events: each is a line on standard error and a row of `logs`.

Success is not logged and a change of state is logged once, so there are few events and each is worth a row.
"""

import logging
import os
import sys
from collections.abc import Callable
from io import TextIOBase
from typing import Any

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from collector.text import printable

Sink = Callable[[str, str], None]
"""Stores an event; its arguments are the level, as in the `logs` table, and the text."""

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
_DOCUMENTED_LEVELS = {"warning": "warn"}
_JOURNAL_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


def configure(
    level: str, output_format: str, sink: Sink | None = None, output: TextIOBase | None = None
) -> None:
    """Configure structlog, and route the warnings of libraries through it.

    Args:
        level: debug, info, warning, error or critical; events below it are neither printed nor stored.
        output_format: `console`, `json`, or `auto`: the format of the journal under systemd, else `console`.
        sink: called with every event of level `info` or above.
        output: where events are printed; None for standard error.
    """
    stream: Any = output or sys.stderr
    renderers: list[Processor]
    if output_format == "json":
        timestamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
        renderers = [timestamp, structlog.processors.JSONRenderer()]
    elif output_format == "auto" and "JOURNAL_STREAM" in os.environ:
        renderers = [_render_for_journal]  # the journal adds the time
    else:
        timestamp = structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=False)
        colors = stream.isatty()
        renderers = [timestamp, structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=0)]
    structlog.configure(
        processors=[
            structlog.stdlib.add_log_level,
            _make_printable,
            *([_SinkProcessor(sink)] if sink else []),
            structlog.processors.format_exc_info,
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    library_logger = logging.getLogger()
    library_logger.handlers = [_LibraryLogHandler()]
    library_logger.setLevel(logging.WARNING)


def plain_text(event_dict: EventDict) -> str:
    """Return an event on one line: its text, then its other values as `key=value`."""
    rest = (f"{k}={v}" for k, v in event_dict.items() if k not in ("event", "level", "exc_info", "exception"))
    return " ".join((str(event_dict.get("event", "")), *rest))


def _make_printable(_logger: WrappedLogger, _method: str, event_dict: EventDict) -> EventDict:
    """Replace control characters: file names and answers of servers may contain what a terminal executes."""
    return {
        key: printable(value, keep="\n") if isinstance(value, str) else value
        for key, value in event_dict.items()
    }


def _render_for_journal(_logger: WrappedLogger, _method: str, event_dict: EventDict) -> str:
    """Return an event with its priority in front, as sd-daemon(3) describes, and its trace below it.

    Each line gets the priority: journald makes an entry of each, and a text from outside that contains a
    newline could otherwise choose the priority of what follows it.
    """
    prefix = f"<{_JOURNAL_PRIORITIES[event_dict['level']]}>"
    text = "\n".join(filter(None, (plain_text(event_dict), event_dict.get("exception", ""))))
    return "\n".join(prefix + line for line in text.splitlines())


class _SinkProcessor:
    """A structlog processor that passes each event to a sink.

    Args:
        sink: called with every event of level `info` or above.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def __call__(self, _logger: WrappedLogger, _method: str, event_dict: EventDict) -> EventDict:
        level: str = event_dict["level"]
        if level != "debug":
            self._sink(_DOCUMENTED_LEVELS.get(level, level), plain_text(event_dict))
        return event_dict


class _LibraryLogHandler(logging.Handler):
    """A handler that turns warnings of APScheduler and httpx into events of the collector."""

    def emit(self, record: logging.LogRecord) -> None:
        logger: Any = structlog.get_logger()
        getattr(logger, record.levelname.lower(), logger.warning)(
            f"{record.name}: {record.getMessage()}", exc_info=record.exc_info
        )
