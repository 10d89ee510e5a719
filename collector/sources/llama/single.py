"""A llama-server that serves one model."""

from dataclasses import replace
from pathlib import PurePath

from collector.errors import UnexpectedStatus
from collector.health import State
from collector.parsers.command_line import option
from collector.parsers.server_answers import Props, ServedModel, parse_props
from collector.sources.base import Tick
from collector.sources.llama.context import ServerContext
from collector.sources.llama.endpoint import (
    METRICS_DISABLED,
    METRICS_DISABLED_STATUS,
    NO_SUCH_PATH_STATUS,
    UP,
    Metrics,
    ModelEndpoint,
    ServerReading,
    ServingProcess,
)
from collector.sources.llama.http import LlamaHttp, listening_address
from collector.sources.llama.local.addresses import process_at
from collector.sources.llama.local.process import LlamaProcess

PROCESS_NOT_VISIBLE = State(
    "up",
    "only the state of its model is read: reading /metrics of this build could keep the model awake, and its "
    "process is not visible from here. /metrics of builds from b10531 on that report their build number is "
    "always read",
)


class SingleServer:
    """A server without router mode: at any time one process that serves one model.

    Args:
        url: URL of the server; also used to find its process.
        http: connection to it.
        context: processes, GPUs and rows of `models`.
    """

    def __init__(self, url: str, http: LlamaHttp, context: ServerContext) -> None:
        self._url = url
        self._http = http
        self._context = context
        self._endpoint = ModelEndpoint(http)
        self._was_down = False  # since /metrics was read last
        self._was_loading = False

    def record_down(self) -> None:
        """Record that nothing listens at the URL: the counters of the next process start at 0."""
        self._was_down = True

    def record_loading(self) -> None:
        """Record that the server still loads its model: the process works, and its metrics are read once."""
        self._was_loading = True

    def reset(self) -> None:
        """Remove the stored answer of /props, because the next process may be another build."""
        self._endpoint.reset()

    def read(self, tick: Tick, props: Props) -> ServerReading:
        """Read the state of the model, and /metrics unless that would keep the model awake.

        Args:
            tick: the present tick.
            props: an earlier answer of /props. If the model may sleep, /props is read again: it reports
                whether the model sleeps, and does not wake it.

        Raises:
            RequestFailed, ParseError: see `ModelEndpoint.read`.
        """
        process = process_at(self._url, self._context.processes_of(tick))
        self._endpoint.set_props(props, is_new=self._was_down or self._was_loading)
        if not self._endpoint.is_harmless or (props.can_sleep and (process is None or process.may_sleep)):
            props = parse_props(self._http.get("/props").text)
        model = props.model
        if model is None:
            return ServerReading(())
        if props.has_metrics is False:
            return self._reading(props, model, process, METRICS_DISABLED)
        if model.state != "loaded":
            return self._reading(props, model, process)
        if not self._endpoint.may_read(process):
            return self._reading(props, model, process, UP if process else PROCESS_NOT_VISIBLE)
        try:
            metrics = self._endpoint.read()
        except UnexpectedStatus as error:
            if error.status in (NO_SUCH_PATH_STATUS, METRICS_DISABLED_STATUS):
                return self._reading(props, model, process, METRICS_DISABLED)
            raise
        new_props = None
        if self._endpoint.is_new_process(metrics):
            new_props = props = parse_props(self._http.get("/props").text)
            self._endpoint.reset()
            self._endpoint.set_props(props, is_new=True)
            model = props.model or model
        reading = self._reading(props, model, process, metrics=metrics)
        self._was_down = self._was_loading = False
        return replace(reading, props=new_props)

    def loading_model(self, tick: Tick) -> tuple[ServedModel, ...]:
        """Return the model of a server that still loads it, from its command line; empty if not visible."""
        process = process_at(self._url, self._context.processes_of(tick))
        path = option(process.arguments, "--model", "-m") if process else None
        if process is None or path is None:
            return ()
        name = option(process.arguments, "--alias", "-a") or PurePath(path).stem
        return (ServedModel(name, path, "loading"),)

    def _reading(
        self,
        props: Props,
        model: ServedModel,
        process: LlamaProcess | None,
        state: State = UP,
        metrics: Metrics | None = None,
    ) -> ServerReading:
        if process:
            model = replace(model, arguments=process.arguments)
        served = ServingProcess(
            model,
            listening_address(self._url),
            process,
            metrics,
            is_new=self._was_down,
            build=props.build,
            slots=props.slots,
        )
        return ServerReading((model,), (served,), state)
