"""A llama-server that routes over many models, each in a process of its own."""

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
    METRICS_ARE_OFF,
    METRICS_OFF,
    UP,
    Metrics,
    ModelEndpoint,
    ServedProcess,
    ServerReading,
)
from collector.sources.llama.http import Address, LlamaHttp
from collector.sources.llama.processes import LlamaProcess

IPV6 = 6
LAST_PORT = 65535
MAX_CHILDREN = 256
"""How many models are read, each over a connection of its own: more than a machine can load."""

ELSEWHERE = State(
    "up", "a router on another machine: its models' own metrics cannot be reached, only their states"
)


@dataclass(slots=True)
class _Child:
    """The process of one model, as long as it runs on its port.

    Attributes:
        http: connection to it.
        endpoint: its /metrics.
        is_new: whether it was absent at an earlier sample: then its counters started at 0.
        timed_out_at: monotonic seconds of its last time-out; 0 = it has always answered in time.
    """

    http: LlamaHttp
    endpoint: ModelEndpoint
    is_new: bool
    timed_out_at: float = 0.0


class Router:
    """The models of a router: their states from its list, their metrics from their own ports.

    Nothing is ever asked of a model through the router: that would load it, and write a line to its log.

    Args:
        address: where the router is; its key and time-out are used for its children too.
        http: connection to it.
        context: processes, GPUs and rows of `models`.
    """

    def __init__(self, address: Address, http: LlamaHttp, context: ServerContext) -> None:
        self._is_here = is_local(address.url)
        self._address = address
        self._http = http
        self._context = context
        self._children: dict[tuple[str, int], _Child] = {}
        self._has_read = False

    def read(self, tick: Tick) -> ServerReading:
        """Read the list, and every loaded model whose metrics can be read without keeping it awake.

        Raises:
            RequestFailed, ParseError: see `LlamaHttp.get`.
        """
        models = parse_models(self._http.get("/models").text)
        self._context.models.add_missing(models)
        in_memory = [model for model in models if model.state in ("loaded", "sleeping")]
        if not self._is_here:
            return ServerReading(models, tuple(ServedProcess(m, "") for m in in_memory), ELSEWHERE)
        processes = {process.port: process for process in self._context.processes_of(tick)}
        self._follow_children(models)
        served, state = {model.name: self._unread(model, processes) for model in in_memory}, UP
        deadline = time.monotonic() + 2 * self._address.timeout
        for model, child in self._children_to_read(in_memory):
            if time.monotonic() > deadline:
                break  # the others follow in a later sample: their counters wait
            try:
                metrics = self._read_child(model, child, served[model.name].process)
            except UnexpectedStatus as error:
                state = METRICS_ARE_OFF if error.status == METRICS_OFF else state
            except ServerBusy:
                child.timed_out_at = time.monotonic()
            except (ServerDown, InvalidAnswer, ParseError):
                continue  # it ends at this moment: the next list says so
            else:
                if metrics:
                    served[model.name] = self._unread(model, processes, metrics, child)
        return ServerReading(models, tuple(served.values()), state)

    def close(self) -> None:
        """Close the connections to the children."""
        for child in self._children.values():
            child.http.close()
        self._children.clear()
        self._has_read = False

    def _unread(
        self,
        model: ServedModel,
        processes: dict[int, LlamaProcess],
        metrics: Metrics | None = None,
        child: _Child | None = None,
    ) -> ServedProcess:
        port = _port(model)
        child = child or self._children.get((model.name, port))
        props = child.endpoint.props if child else None
        return ServedProcess(
            model,
            f"127.0.0.1:{port}" if port else "",
            _own_process(processes.get(port), model),
            metrics,
            is_new=child.is_new if child else self._has_read,
            build=props.build if props else None,
            slots=props.slots if props else None,
        )

    def _children_to_read(self, models: list[ServedModel]) -> list[tuple[ServedModel, _Child]]:
        """Return the loaded models and their children; those that timed out come last and delay no other."""
        loaded = [(m, self._children.get((m.name, _port(m)))) for m in models if m.state == "loaded"]
        return sorted(((m, child) for m, child in loaded if child), key=lambda pair: pair[1].timed_out_at)

    def _follow_children(self, models: tuple[ServedModel, ...]) -> None:
        """Keep what is remembered of each running child; a model on another port is another child."""
        running = {(m.name, _port(m)): m for m in models if m.state in ("loaded", "sleeping") and _port(m)}
        running = dict(islice(running.items(), MAX_CHILDREN))
        for key in self._children.keys() - running.keys():
            self._children.pop(key).http.close()
        for key in running.keys() - self._children.keys():
            http = LlamaHttp(self._child_address(running[key]))
            self._children[key] = _Child(http, ModelEndpoint(http), is_new=self._has_read)
        self._has_read = True

    def _child_address(self, model: ServedModel) -> Address:
        """Return the address of a child; one that got a key from the environment needs the router's key."""
        prefix = (option(model.arguments, "--api-prefix") or "").strip("/")
        url = f"http://127.0.0.1:{_port(model)}/{prefix}"  # the slash: or a prefix could name another host
        return Address(url, self._address.api_key, self._address.timeout)

    def _read_child(self, model: ServedModel, child: _Child, process: LlamaProcess | None) -> Metrics | None:
        """Read a child's metrics; None where that would keep its model awake.

        Its first answer must be that of the model: another program may listen on the port.
        """
        if child.endpoint.props is None:
            props = parse_props(child.http.get("/props").text)
            if props.model is None or props.model.path != model.path:
                raise InvalidAnswer("another server listens on this port")
            child.endpoint.identify(props, is_new=child.is_new)
        return child.endpoint.read() if child.endpoint.may_read(process) else None


def is_local(url: str) -> bool:
    """Return whether a URL leads to this machine."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "unix" or host == "localhost":
        return True
    try:
        family = socket.AF_INET6 if ip_address(host).version == IPV6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))  # the kernel binds addresses of this machine only
    except (ValueError, OSError):
        return False
    return True


def _port(model: ServedModel) -> int:
    """Return the port of a model's process; 0 while it has none."""
    value = option(model.arguments, "--port") or ""
    return int(value) if re.fullmatch(r"[0-9]{1,5}", value) and int(value) <= LAST_PORT else 0


def _own_process(process: LlamaProcess | None, model: ServedModel) -> LlamaProcess | None:
    """Return the process on a model's port, if it serves that model."""
    if process is None or option(process.arguments, "--model", "-m") != model.path:
        return None
    return process
