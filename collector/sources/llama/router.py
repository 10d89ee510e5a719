"""A llama-server in router mode: it starts one child process per model."""

import re
import socket
import time
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import islice
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
from collector.sources.llama.processes import LlamaProcess

IPV6 = 6
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
        timed_out_at: monotonic seconds of its last time-out; 0 = none.
    """

    http: LlamaHttp
    endpoint: ModelEndpoint
    is_new: bool
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
        self._is_local = is_local(address.url)
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
        in_memory = [model for model in models if model.state in ("loaded", "sleeping")]
        if not self._is_local:
            return ServerReading(models, tuple(ServingProcess(m, "") for m in in_memory), REMOTE)
        processes = {process.port: process for process in self._context.processes_of(tick)}
        self._update_children(models)
        served, state = {model.name: self._served(model, processes) for model in in_memory}, UP
        deadline = time.monotonic() + 2 * self._address.timeout
        for model, child in self._children_to_read(in_memory):
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

    def close(self) -> None:
        """Close the connections to the children."""
        for child in self._children.values():
            child.http.close()
        self._children.clear()
        self._has_read = False

    def _served(
        self, model: ServedModel, processes: dict[int, LlamaProcess], metrics: Metrics | None = None
    ) -> ServingProcess:
        port = _port(model)
        child = self._children.get((model.name, port))
        props = child.endpoint.props if child else None
        process = processes.get(port)
        if process and option(process.arguments, "--model", "-m") != model.path:
            process = None  # a process of another server, which listens on this port of another address
        return ServingProcess(
            model,
            f"127.0.0.1:{port}" if port else "",
            process,
            metrics,
            is_new=child.is_new if child else self._has_read,
            build=props.build if props else None,
            slots=props.slots if props else None,
        )

    def _children_to_read(self, models: list[ServedModel]) -> list[tuple[ServedModel, _Child]]:
        """Return the loaded models and their children, those without a time-out first.

        So a few children that never answer do not use up the time that a sample may last.
        """
        loaded = [(m, self._children.get((m.name, _port(m)))) for m in models if m.state == "loaded"]
        return sorted(((m, child) for m, child in loaded if child), key=lambda pair: pair[1].timed_out_at)

    def _update_children(self, models: tuple[ServedModel, ...]) -> None:
        """Add the children that are new in the list of models, and remove those that are not in it any more.

        A model on another port is another child.
        """
        running = {(m.name, _port(m)): m for m in models if m.state in ("loaded", "sleeping") and _port(m)}
        running = dict(islice(running.items(), MAX_CHILDREN))
        for key in self._children.keys() - running.keys():
            self._children.pop(key).http.close()
        for key in running.keys() - self._children.keys():
            http = LlamaHttp(self._child_address(running[key]))
            self._children[key] = _Child(http, ModelEndpoint(http), is_new=self._has_read)
        self._has_read = True

    def _child_address(self, model: ServedModel) -> Address:
        """Return the address of a child, with the key of the router, which the child may have inherited."""
        prefix = (option(model.arguments, "--api-prefix") or "").strip("/")
        # The slash is needed also without a prefix: the prefix `@HOST` would otherwise lead to that host.
        url = f"http://127.0.0.1:{_port(model)}/{prefix}"
        return Address(url, self._address.api_key, self._address.timeout)

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


def is_local(url: str) -> bool:
    """Return whether the host of a URL is this machine; no name but localhost is resolved."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "unix" or host == "localhost":
        return True
    try:
        family = socket.AF_INET6 if ip_address(host).version == IPV6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))  # fails for an address of another machine
    except (ValueError, OSError):
        return False
    return True


def _port(model: ServedModel) -> int:
    """Return the port of the child that serves a model; 0 if it has none."""
    value = option(model.arguments, "--port") or ""
    return int(value) if re.fullmatch(r"[0-9]{1,5}", value) and int(value) <= LAST_PORT else 0
