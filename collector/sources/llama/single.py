"""A llama-server that serves one model."""

from dataclasses import dataclass
from pathlib import PurePath
from urllib.parse import urlsplit

from collector.errors import UnexpectedStatus
from collector.health import State
from collector.parsers.command_line import option
from collector.parsers.server_answers import Props, ServedModel, parse_props
from collector.schema import Row
from collector.sources.base import Tick
from collector.sources.llama.http import Answer, LlamaHttp
from collector.sources.llama.idle_guard import IdleGuard
from collector.sources.llama.metrics import ModelMetrics
from collector.sources.llama.neighbours import Neighbours
from collector.sources.llama.processes import LlamaProcess

NO_SUCH_PATH, METRICS_OFF = 404, 501
UP = State("up")
UNSEEN = State(
    "up",
    "reading /metrics of this build could keep its model awake, and its process cannot be seen here: only "
    "its state is read. Builds from b10531 on that know their number can be read at any time",
)
METRICS_ARE_OFF = State("metrics off", "start llama-server with --metrics", level="warning", success=False)


@dataclass(frozen=True, slots=True)
class Seen:
    """What one look at a server gave: its models, rows of `llama_metrics`, and how it fares."""

    models: tuple[ServedModel, ...]
    rows: tuple[Row, ...]
    state: State = UP


class SingleServer:
    """Follows the one model of a server, over all its runs.

    Args:
        url: where the server is, to tell its process from others.
        http: the way to it.
        neighbours: what others know.
    """

    def __init__(self, url: str, http: LlamaHttp, neighbours: Neighbours) -> None:
        self._url = url
        self._http = http
        self._neighbours = neighbours
        self._metrics = ModelMetrics()
        self._guard: IdleGuard | None = None

    def was_down(self) -> None:
        """Nothing listens: whatever comes next starts its counters at 0."""
        self._metrics.was_down()

    def was_away(self) -> None:
        """It could not be read; it may come back as another build."""
        self._guard = None

    def look(self, tick: Tick, props: Props) -> Seen:
        """Read the model, unless that would keep it awake.

        Args:
            tick: the sample.
            props: what /props said at the last contact; asked again where that may have changed: it tells of
                a sleeping model and wakes nothing.

        Raises:
            ServerDown, ServerBusy, InvalidAnswer, UnexpectedStatus, ParseError: see `LlamaHttp.get`.
        """
        process = process_at(self._url, self._neighbours.processes_of(tick))
        self._guard = self._guard or IdleGuard(props, is_new=self._metrics.is_new)
        if not self._guard.is_harmless or (props.can_sleep and (process is None or process.may_sleep)):
            props = parse_props(self._http.get("/props").text)
        model = props.model
        if model is None or model.state != "loaded":
            return Seen((model,) if model else (), ())
        if props.has_metrics is False:
            return Seen((model,), (), METRICS_ARE_OFF)
        if not self._guard.may_read(process):
            return Seen((model,), (), UP if process else UNSEEN)
        try:
            answer = self._http.get("/metrics")
        except UnexpectedStatus as error:
            if error.status in (NO_SUCH_PATH, METRICS_OFF):  # 404: a build of early 2024; /props was there
                return Seen((model,), (), METRICS_ARE_OFF)
            raise
        self._guard.has_read()
        return self._seen(tick, model, answer, process)

    def loading_model(self, tick: Tick) -> tuple[ServedModel, ...]:
        """The model that a server which answers `Loading model` loads, by its process's command line."""
        process = process_at(self._url, self._neighbours.processes_of(tick))
        path = option(process.arguments, "--model", "-m") if process else None
        if process is None or path is None:
            return ()
        name = option(process.arguments, "--alias", "-a") or PurePath(path).stem
        return (ServedModel(name, path, "loading"),)

    def _seen(self, tick: Tick, model: ServedModel, answer: Answer, process: LlamaProcess | None) -> Seen:
        if self._metrics.is_another_run(answer):
            model = parse_props(self._http.get("/props").text).model or model
        row = self._metrics.row(tick, model, answer, process, self._neighbours)
        return Seen((model,), (row,))


def process_at(url: str, processes: tuple[LlamaProcess, ...]) -> LlamaProcess | None:
    """The process that serves a URL: the one told to listen there, else the only one there is."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        listening = [p for p in processes if option(p.arguments, "--host") == parts.path]
    else:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        listening = [p for p in processes if p.port == port]
    candidates = listening or processes
    return candidates[0] if len(candidates) == 1 else None
