"""A llama-server in router mode: it starts one child process per model."""

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from collector.errors import InvalidAnswer, ParseError, ServerBusy, ServerDown, UnexpectedStatus
from collector.health import State
from collector.parsers.command_line import option
from collector.parsers.server_answers import ServedModel, parse_models, parse_props
from collector.sources.base import Tick
from collector.sources.llama.context import ServerContext
from collector.sources.llama.endpoint import (
    METRICS_DISABLED,
    METRICS_DISABLED_STATUS,
    UP,
    Metrics,
    ModelEndpoint,
    ServerReading,
    ServingProcess,
)
from collector.sources.llama.http import Address, LlamaHttp
from collector.sources.llama.local.addresses import is_local
from collector.sources.llama.local.process import LlamaProcess
from collector.sources.llama.local.sockets import listening_sockets, owners_of_port

LAST_PORT = 65535
MAX_CHILDREN = 256
"""How many children are read, each over its own connection: more than a machine can load."""

REMOTE = State(
    "up", "a router on another machine: only the states of its models can be read, not their metrics"
)


@dataclass(slots=True)
class _Child:
    """The child process of one model.

    Attributes:
        http: connection to it.
        endpoint: its endpoint.
        is_new: whether an earlier sample of this collector did not list it: then its counters started at 0.
        has_key: whether the API key is sent to it.
        timed_out_at: monotonic seconds of its last time-out; 0 = none.
    """

    http: LlamaHttp
    endpoint: ModelEndpoint
    is_new: bool
    has_key: bool
    timed_out_at: float = 0.0


class Router:
    """A router and its children: it lists the states of all models, each child reports its metrics.

    A request for a model is never sent through the router: that would load the model, and add a line to the
    log of the router. It is sent to the port of the child.

    Args:
        address: address of the router; its key and time-out are used for the children too.
        http: connection to it.
        context: processes, GPUs and rows of `models`.
    """

    def __init__(self, address: Address, http: LlamaHttp, context: ServerContext) -> None:
        self._is_local: bool | None = None
        self._address = address
        self._http = http
        self._context = context
        self._children: dict[tuple[str, int], _Child] = {}
        self._has_read = False

    def read(self, tick: Tick) -> ServerReading:
        """Read the list of models, and /metrics of each child that this does not keep awake.

        Raises:
            RequestFailed, ParseError: see `LlamaHttp.get`.
        """
        models = parse_models(self._http.get("/models").text)
        in_memory = [model for model in models if model.state in ("loaded", "sleeping")][:MAX_CHILDREN]
        if not self._has_local_address():
            return ServerReading(models, tuple(ServingProcess(m, "") for m in in_memory), REMOTE)
        processes = self._context.processes_of(tick)
        trusted = self._trusted_ports(in_memory)
        self._update_children(in_memory, trusted)
        served, state = {model.name: self._served(model, processes) for model in in_memory}, UP
        deadline = time.monotonic() + 2 * self._address.timeout
        for model, child in self._children_to_read(in_memory, trusted):
            if time.monotonic() > deadline:
                break  # the other children are read in a later sample: their counters lose nothing until then
            try:
                metrics = self._read_child(model, child, served[model.name].process)
            except UnexpectedStatus as error:
                state = METRICS_DISABLED if error.status == METRICS_DISABLED_STATUS else state
            except ServerBusy:
                child.timed_out_at = time.monotonic()
            except (ServerDown, InvalidAnswer, ParseError):
                continue  # it is ending: the next list will report that
            else:
                if metrics:
                    served[model.name] = self._served(model, processes, metrics)
        return ServerReading(models, tuple(served.values()), state)

    def _has_local_address(self) -> bool:
        if self._is_local is None:
            self._is_local = is_local(self._address.url)
        return self._is_local

    def close(self) -> None:
        """Close the connections to the children."""
        for child in self._children.values():
            child.http.close()
        self._children.clear()
        self._has_read = False
        self._is_local = None  # the address may be that of another machine by the next answer

    def _served(
        self, model: ServedModel, processes: Sequence[LlamaProcess], metrics: Metrics | None = None
    ) -> ServingProcess:
        port = _port(model)
        child = self._children.get((model.name, port))
        props = child.endpoint.props if child else None
        # The model is compared too: another server may listen on this port of another address.
        at_port = (one for one in processes if port and one.port == port)
        process = next((one for one in at_port if option(one.arguments, "--model", "-m") == model.path), None)
        return ServingProcess(
            model,
            f"127.0.0.1:{port}" if port else "",
            process,
            metrics,
            is_new=child.is_new if child else self._has_read,
            build=props.build if props else None,
            slots=props.slots if props else None,
        )

    def _children_to_read(
        self, models: list[ServedModel], trusted: frozenset[int]
    ) -> list[tuple[ServedModel, _Child]]:
        """Return the loaded models and their children, those without a time-out first.

        A child that gets the API key is left out while another user's process listens on its port. A few
        children that never answer do not use up the time that a sample may last.
        """
        loaded = [(m, self._children.get((m.name, _port(m)))) for m in models if m.state == "loaded"]
        known = [(m, one) for m, one in loaded if one and (_port(m) in trusted or not one.has_key)]
        return sorted(known, key=lambda pair: pair[1].timed_out_at)

    def _trusted_ports(self, models: Sequence[ServedModel]) -> frozenset[int]:
        """Return the ports of models on which only processes of the router's user listen.

        Only they get the API key: any other program could listen on the port of a child that just ended, or
        of a child that the router only claims to have. A program of the router's own user could read the key
        from the memory of the router anyway. Without an API key nothing is read here.
        """
        if self._address.api_key is None:
            return frozenset()
        sockets = listening_sockets()
        parts = urlsplit(self._address.url)
        users = owners_of_port(sockets, parts.port or (443 if parts.scheme == "https" else 80))
        if parts.scheme == "unix":
            with suppress(OSError):
                users = frozenset({Path(parts.path).stat().st_uid})
        return frozenset(p for p in map(_port, models) if users and owners_of_port(sockets, p) == users)

    def _update_children(self, models: Sequence[ServedModel], trusted: frozenset[int]) -> None:
        """Add the children that are new in the list of models, and remove those that are not in it any more.

        A model on another port is another child.

        Args:
            models: the models that are in memory.
            trusted: the ports of children that get the API key.
        """
        running = {(m.name, _port(m)): m for m in models if _port(m)}
        for key in self._children.keys() - running.keys():
            self._children.pop(key).http.close()
        for key in running.keys() - self._children.keys():
            has_key = key[1] in trusted
            http = LlamaHttp(self._child_address(running[key], has_key=has_key))
            self._children[key] = _Child(http, ModelEndpoint(http), is_new=self._has_read, has_key=has_key)
        self._has_read = True

    def _child_address(self, model: ServedModel, *, has_key: bool) -> Address:
        """Return the address of a child, with the key of the router, which the child may have inherited."""
        prefix = (option(model.arguments, "--api-prefix") or "").strip("/")
        # The slash is needed also without a prefix: the prefix `@HOST` would otherwise lead to that host.
        url = f"http://127.0.0.1:{_port(model)}/{prefix}"
        return Address(url, self._address.api_key if has_key else None, self._address.timeout)

    def _read_child(self, model: ServedModel, child: _Child, process: LlamaProcess | None) -> Metrics | None:
        """Return /metrics of a child; None if reading it would keep the model awake.

        /props is read first, once for each child: another program may listen on the port.

        Raises:
            RequestFailed, ParseError: see `LlamaHttp.get`.
        """
        if child.endpoint.props is None:
            props = parse_props(child.http.get("/props").text)
            if props.model is None or props.model.path != model.path:
                raise InvalidAnswer("another server listens on its port")
            child.endpoint.set_props(props, is_new=child.is_new)
        return child.endpoint.read() if child.endpoint.may_read(process) else None


def _port(model: ServedModel) -> int:
    """Return the port of the child that serves a model; 0 if it has none."""
    value = option(model.arguments, "--port") or ""
    return int(value) if re.fullmatch(r"[0-9]{1,5}", value) and int(value) <= LAST_PORT else 0
