"""A llama-server that routes over many models, each in a process of its own."""

import re
import socket
import time
from ipaddress import ip_address
from itertools import islice
from urllib.parse import urlsplit

from collector.errors import InvalidAnswer, ParseError, ServerBusy, ServerDown, UnexpectedStatus
from collector.health import State
from collector.parsers.command_line import option
from collector.parsers.server_answers import Props, ServedModel, parse_models, parse_props
from collector.schema import Row
from collector.sources.base import Tick
from collector.sources.llama.http import Address, Answer, LlamaHttp
from collector.sources.llama.idle_guard import IdleGuard
from collector.sources.llama.metrics import NOT_STARTED, ModelMetrics
from collector.sources.llama.neighbours import Neighbours
from collector.sources.llama.processes import LlamaProcess
from collector.sources.llama.single import METRICS_ARE_OFF, METRICS_OFF, UP, Seen

IPV6 = 6
LAST_PORT = 65535
MAX_CHILDREN = 256
"""How many models are read, each over a connection of its own: more than a machine can load."""
ELSEWHERE = State(
    "up", "a router on another machine: its models' own metrics cannot be reached, only their states"
)


class Router:
    """Follows a router's models: their states by its list, their metrics on their own ports.

    Nothing is ever asked of a model through the router: that would load it, and write a line to its log.

    Args:
        address: where the router is; its key and time-out serve for its models too.
        http: the way to it.
        neighbours: what others know.
    """

    def __init__(self, address: Address, http: LlamaHttp, neighbours: Neighbours) -> None:
        self._is_here = is_local(address.url)
        self._address = address
        self._http = http
        self._neighbours = neighbours
        self._children: dict[tuple[str, int], _Child] = {}
        self._has_looked = False

    def look(self, tick: Tick, _props: Props) -> Seen:
        """Read the list, and every loaded model whose reading keeps it not awake.

        Raises:
            ServerDown, ServerBusy, InvalidAnswer, UnexpectedStatus, ParseError: see `LlamaHttp.get`.
        """
        models = parse_models(self._http.get("/models").text)
        if not self._is_here:
            return Seen(models, (), ELSEWHERE)
        processes = {process.port: process for process in self._neighbours.processes_of(tick)}
        self._meet(models)
        rows, state = [], UP
        deadline = time.monotonic() + 2 * self._address.timeout
        for model, child in self._loaded(models):
            if time.monotonic() > deadline:
                break  # the others' turn comes at a later look: their counters wait
            try:
                row = self._read(tick, model, child, _own(processes.get(_port(model)), model))
            except UnexpectedStatus as error:
                state = METRICS_ARE_OFF if error.status == METRICS_OFF else state
            except ServerBusy:
                child.hung_at = time.monotonic()
            except (ServerDown, InvalidAnswer, ParseError):
                continue  # it ends just now: the list will tell
            else:
                rows += [row] if row else []
        return Seen(models, tuple(rows), state)

    def close(self) -> None:
        """Close the connections to the models."""
        for child in self._children.values():
            child.http.close()
        self._children.clear()
        self._has_looked = False

    def _loaded(self, models: tuple[ServedModel, ...]) -> list[tuple[ServedModel, "_Child"]]:
        """The models to read; those that hung come last, so that they take no other's turn."""
        loaded = [(m, self._children.get((m.name, _port(m)))) for m in models if m.state == "loaded"]
        return sorted(((m, child) for m, child in loaded if child), key=lambda pair: pair[1].hung_at)

    def _meet(self, models: tuple[ServedModel, ...]) -> None:
        """Keep what is remembered of each running model; a port that is used again is another child."""
        running = {(m.name, _port(m)): m for m in models if m.state in ("loaded", "sleeping") and _port(m)}
        running = dict(islice(running.items(), MAX_CHILDREN))
        for key in self._children.keys() - running.keys():
            self._children.pop(key).http.close()
        for key in running.keys() - self._children.keys():
            self._children[key] = _Child(running[key], self._address, is_new=self._has_looked)
        self._has_looked = True

    def _read(
        self, tick: Tick, model: ServedModel, child: "_Child", process: LlamaProcess | None
    ) -> Row | None:
        if not child.may_read(model, process):
            return None
        answer = child.read()
        return child.metrics.row(tick, model, answer, process, self._neighbours)


class _Child:
    """One model's own process, as long as it runs on its port.

    Args:
        model: with its command line.
        router: its key is sent along, though only a child that got one from the environment wants it.
        is_new: whether it was not there at an earlier look: then its counters started at 0.
    """

    def __init__(self, model: ServedModel, router: Address, *, is_new: bool) -> None:
        prefix = (option(model.arguments, "--api-prefix") or "").strip("/")
        url = f"http://127.0.0.1:{_port(model)}/{prefix}"  # the slash: or a prefix could name another host
        self.http = LlamaHttp(Address(url, router.api_key, router.timeout))
        self.metrics = ModelMetrics(NOT_STARTED if is_new else None)
        self._is_new = is_new
        self._guard: IdleGuard | None = None
        self.hung_at = 0.0
        """On the monotonic clock; 0 while it always answered in time."""

    def may_read(self, model: ServedModel, process: LlamaProcess | None) -> bool:
        """Whether reading keeps it not awake. Asks once who it is: the port may lead elsewhere."""
        if self._guard is None:
            props = parse_props(self.http.get("/props").text)
            if props.model is None or props.model.path != model.path:
                raise InvalidAnswer("another server listens on this port")
            self._guard = IdleGuard(props, is_new=self._is_new)
        return self._guard.may_read(process)

    def read(self) -> Answer:
        """Its /metrics."""
        answer = self.http.get("/metrics")
        if self._guard:
            self._guard.has_read()
        return answer


def is_local(url: str) -> bool:
    """Whether a URL leads to this machine."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "unix" or host == "localhost":
        return True
    try:
        family = socket.AF_INET6 if ip_address(host).version == IPV6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))  # the kernel gives out this machine's addresses only
    except (ValueError, OSError):
        return False
    return True


def _port(model: ServedModel) -> int:
    """The port of its process; 0 while it has none."""
    value = option(model.arguments, "--port") or ""
    return int(value) if re.fullmatch(r"[0-9]{1,5}", value) and int(value) <= LAST_PORT else 0


def _own(process: LlamaProcess | None, model: ServedModel) -> LlamaProcess | None:
    """The process on a model's port, if it serves that model."""
    if process is None or option(process.arguments, "--model", "-m") != model.path:
        return None
    return process
