"""A llama-server that serves one model."""

from pathlib import PurePath
from urllib.parse import urlsplit

from collector.errors import UnexpectedStatus
from collector.health import State
from collector.parsers.command_line import option
from collector.parsers.server_answers import Props, ServedModel, parse_props
from collector.sources.base import Tick
from collector.sources.llama.context import ServerContext
from collector.sources.llama.endpoint import (
    METRICS_ARE_OFF,
    METRICS_OFF,
    NO_SUCH_PATH,
    UP,
    ModelEndpoint,
    ServedProcess,
    ServerReading,
)
from collector.sources.llama.http import LlamaHttp, listening_address
from collector.sources.llama.processes import LlamaProcess

UNSEEN = State(
    "up",
    "reading /metrics of this build could keep its model awake, and its process cannot be seen here: only "
    "its state is read. Builds from b10531 on that know their number can be read at any time",
)


class SingleServer:
    """The one model of a server, through all the processes that serve it one after another.

    Args:
        url: where the server is, to distinguish its process from others.
        http: connection to it.
        context: processes, GPUs and rows of `models`.
    """

    def __init__(self, url: str, http: LlamaHttp, context: ServerContext) -> None:
        self._url = url
        self._http = http
        self._context = context
        self._endpoint = ModelEndpoint(http)
        self._was_down = False
        self._was_loading = False

    def was_down(self) -> None:
        """Record that nothing listened: the next process starts its counters at 0."""
        self._was_down = True

    def was_loading(self) -> None:
        """Record that it answers `Loading model`: its process works, and its metrics are to be read once."""
        self._was_loading = True

    def was_away(self) -> None:
        """Record that the server could not be read: the next process may be another build."""
        self._endpoint.forget()

    def read(self, tick: Tick, props: Props) -> ServerReading:
        """Read the model's state, and its metrics unless that would keep it awake.

        Args:
            tick: the sample.
            props: what /props said at the last contact. Where the model may sleep it is asked again, which
                shows a sleeping model and wakes nothing.

        Raises:
            RequestFailed, ParseError: see `ModelEndpoint.read`.
        """
        process = process_at(self._url, self._context.processes_of(tick))
        self._endpoint.identify(props, is_new=self._was_down or self._was_loading)
        if not self._endpoint.is_harmless or (props.can_sleep and (process is None or process.may_sleep)):
            props = parse_props(self._http.get("/props").text)
        model = props.model
        if model is None:
            return ServerReading(())
        self._context.models.add_missing((model,))
        if props.has_metrics is False:
            return self._reading(props, model, process, METRICS_ARE_OFF)
        if model.state != "loaded":
            return self._reading(props, model, process)
        if not self._endpoint.may_read(process):
            return self._reading(props, model, process, UP if process else UNSEEN)
        try:
            metrics = self._endpoint.read()
        except UnexpectedStatus as error:
            if error.status in (NO_SUCH_PATH, METRICS_OFF):
                return self._reading(props, model, process, METRICS_ARE_OFF)
            raise
        new_props = None
        if self._endpoint.is_another_process(metrics):
            new_props = props = parse_props(self._http.get("/props").text)
            self._endpoint.forget()
            self._endpoint.identify(props, is_new=True)
            model = props.model or model
            self._context.models.add_missing((model,))
        served = ServedProcess(
            model,
            listening_address(self._url),
            process,
            metrics,
            is_new=self._was_down,
            build=props.build,
            slots=props.slots,
        )
        self._was_down = self._was_loading = False
        return ServerReading((model,), (served,), props=new_props)

    def loading_model(self, tick: Tick) -> tuple[ServedModel, ...]:
        """Return the model that a server which answers `Loading model` loads, from its command line."""
        process = process_at(self._url, self._context.processes_of(tick))
        path = option(process.arguments, "--model", "-m") if process else None
        if process is None or path is None:
            return ()
        name = option(process.arguments, "--alias", "-a") or PurePath(path).stem
        return (ServedModel(name, path, "loading"),)

    def _reading(
        self, props: Props, model: ServedModel, process: LlamaProcess | None, state: State = UP
    ) -> ServerReading:
        """Return a reading without metrics."""
        served = ServedProcess(
            model,
            listening_address(self._url),
            process,
            is_new=self._was_down,
            build=props.build,
            slots=props.slots,
        )
        return ServerReading((model,), (served,), state)


def process_at(url: str, processes: tuple[LlamaProcess, ...]) -> LlamaProcess | None:
    """Return the process that serves a URL: the one started with its address, else the only one there is."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        listening = [p for p in processes if option(p.arguments, "--host") == parts.path]
    else:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        listening = [p for p in processes if p.port == port]
    candidates = listening or processes
    return candidates[0] if len(candidates) == 1 else None
