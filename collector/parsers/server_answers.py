"""Parsers of the JSON of llama-server: /props of a server, and /models of a router."""

import json
import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

from collector.errors import ParseError
from collector.parsers.command_line import option

ModelState = Literal["unloaded", "loading", "loaded", "sleeping", "failed"]

MAX_NAME_CHARACTERS = 500
"""Length to which names of models are cut: they come from outside."""

MAX_PATH_CHARACTERS = 4096
"""Limit of the kernel: a longer text is not a path."""

MAX_MODELS = 2000
"""Most entries of /models that are accepted: a large collection has hundreds."""

_STATES: dict[str, ModelState] = {
    "unloaded": "unloaded",
    "loading": "loading",
    "downloading": "loading",
    "downloaded": "unloaded",
    "loaded": "loaded",
    "sleeping": "sleeping",
}


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model as the server reports it.

    Args:
        name: the alias, else the name of the file without its extension.
        path: path of the file, as configured on the server; None if it is not reported.
        state: whether it is in memory.
        arguments: command line of its process; empty if it is not known.
        exit_code: exit code of its process, after a failure.
        context_size: context of one slot in tokens, while it is loaded.
    """

    name: str
    path: str | None
    state: ModelState
    arguments: tuple[str, ...] = ()
    exit_code: int | None = None
    context_size: int | None = None


@dataclass(frozen=True, slots=True)
class Props:
    """An answer of /props.

    Args:
        is_router: whether the server is a router.
        build: build number; None if the server was built without one.
        can_sleep: whether models can sleep in this build.
        has_metrics: whether the server runs with --metrics; None if this build does not report it.
        max_instances: how many models a router keeps loaded; 0 = no limit; None = not reported.
        model: the model of a single server; None for a router.
        slots: requests that it processes at the same time; None = not reported.
    """

    is_router: bool
    build: int | None
    can_sleep: bool
    has_metrics: bool | None
    max_instances: int | None
    model: ServedModel | None
    slots: int | None = None


def parse_props(text: str) -> Props:
    """Parse the answer of /props.

    Raises:
        ParseError: it is not a JSON object.
    """
    props = _json_object(text, "/props")
    is_router = props.get("role") == "router"
    has_metrics = props.get("endpoint_metrics")
    return Props(
        is_router=is_router,
        build=_build_number(props.get("build_info")),
        can_sleep="is_sleeping" in props,
        has_metrics=has_metrics if isinstance(has_metrics, bool) else None,
        max_instances=_integer(props.get("max_instances")),
        model=None if is_router else _single_model(props),
        slots=_integer(props.get("total_slots")),
    )


def parse_models(text: str) -> tuple[ServedModel, ...]:
    """Parse the answer of /models of a router.

    Raises:
        ParseError: it is not a list of models.
    """
    entries = _json_object(text, "/models").get("data")
    if not isinstance(entries, list) or len(entries) > MAX_MODELS:
        raise ParseError("/models contains no list of models, or one that is too long")
    return tuple(
        _router_model(entry) for entry in entries if isinstance(entry, dict) and _text(entry.get("id"))
    )


def _single_model(props: dict[str, Any]) -> ServedModel:
    """Return the model of /props.

    A server without --alias reports the path or the name of the file as alias, depending on its build. Then
    the name of the model is the name of the file without `.gguf`, the same for all builds.
    """
    settings = props.get("default_generation_settings")
    settings = settings if isinstance(settings, dict) else {}
    path = _path(props.get("model_path")) or _path(settings.get("model"))  # builds up to December 2024
    file = PurePath(path or "unknown")
    alias = _text(props.get("model_alias"))
    name = alias if alias and alias not in (path, file.name) else file.stem or "unknown"
    return ServedModel(
        name=name[:MAX_NAME_CHARACTERS],
        path=path,
        state="sleeping" if props.get("is_sleeping") is True else "loaded",
        context_size=_integer(settings.get("n_ctx")),
    )


def _router_model(entry: dict[str, Any]) -> ServedModel:
    status = entry.get("status")
    status = status if isinstance(status, dict) else {}
    reported = status.get("args")
    arguments = (
        tuple(_storable(argument) for argument in reported if isinstance(argument, str))
        if isinstance(reported, list)
        else ()
    )
    failed = status.get("failed") is True
    meta = entry.get("meta")
    return ServedModel(
        name=_storable(entry["id"])[:MAX_NAME_CHARACTERS],
        path=_path(option(arguments, "--model", "-m")),
        state="failed" if failed else _STATES.get(str(status.get("value")), "unloaded"),
        arguments=arguments,
        exit_code=_integer(status.get("exit_code")) if failed else None,
        context_size=_integer(meta.get("n_ctx")) if isinstance(meta, dict) else None,
    )


def _build_number(build_info: object) -> int | None:
    """Return the number in `b11434-1a2b3c4`; None for `b0-unknown`."""
    found = re.match(r"b(\d{1,9})\b", build_info) if isinstance(build_info, str) else None
    return int(found[1]) or None if found else None


def _json_object(text: str, path: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ParseError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ParseError(f"{path} is not a JSON object")
    return value


def _text(value: object) -> str | None:
    return _storable(value) if isinstance(value, str) and value else None


def _path(value: object) -> str | None:
    path = _text(value)
    return path if path and len(path) <= MAX_PATH_CHARACTERS else None


def _storable(text: str) -> str:
    """Return a text without NUL and lone surrogates: JSON can contain them, SQLite and paths cannot."""
    return text.encode("utf-8", "replace").decode().replace("\0", "?")


def _integer(value: object) -> int | None:
    """Return an integer that SQLite can store; None for any other value."""
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        return None
    return value
