"""The HTTP endpoint of one process that serves a model: whether /metrics may be read, and what it says."""

from collections.abc import Mapping
from dataclasses import dataclass

from collector.health import State
from collector.parsers.exposition import parse_exposition
from collector.parsers.server_answers import Props, ServedModel
from collector.sources.llama.http import LlamaHttp
from collector.sources.llama.idle_guard import IdleGuard
from collector.sources.llama.processes import LlamaProcess

UP = State("up")
METRICS_ARE_OFF = State("metrics off", "start llama-server with --metrics", level="warning", success=False)
NO_SUCH_PATH, METRICS_OFF = 404, 501
"""Statuses of /metrics without --metrics; 404 on builds of early 2024."""

RUN_HEADER = "process-start-time-unix"
"""A number that each process draws anew at its start; in spite of its name not Unix time."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """What /metrics of one process says.

    Args:
        samples: value by name.
        run: the header `RUN_HEADER`; None where the build does not send it.
    """

    samples: Mapping[str, float | None]
    run: str | None


@dataclass(frozen=True, slots=True)
class ServedProcess:
    """A model that is in memory, and the process that serves it, in one sample.

    Args:
        model: the model.
        address: where the process answers.
        process: None where it cannot be seen.
        metrics: None where they were not read.
        is_new: whether it is known that nothing served the model at an earlier sample.
        build: its build number.
        slots: requests that it works on at the same time.
    """

    model: ServedModel
    address: str
    process: LlamaProcess | None = None
    metrics: Metrics | None = None
    is_new: bool = False
    build: int | None = None
    slots: int | None = None


@dataclass(frozen=True, slots=True)
class ServerReading:
    """What one sample read of a server.

    Args:
        models: all its models.
        processes: those that are in memory, as far as they can be reached.
        state: of the source.
        props: what /props says now, if another process answers; None = the same as before.
    """

    models: tuple[ServedModel, ...]
    processes: tuple[ServedProcess, ...] = ()
    state: State = UP
    props: Props | None = None


class ModelEndpoint:
    """/metrics of the process that serves a model, in single mode and of a router's child alike.

    Reading /metrics of builds before b10531 wakes a sleeping model and keeps a loaded one awake. The endpoint
    reads it only where that does no harm: see `IdleGuard`.

    Args:
        http: connection to the process.
    """

    def __init__(self, http: LlamaHttp) -> None:
        self._http = http
        self._guard: IdleGuard | None = None
        self._run: str | None = None
        self.props: Props | None = None

    @property
    def is_harmless(self) -> bool:
        """Whether reading neither wakes the model nor keeps it awake."""
        return self._guard is not None and self._guard.is_harmless

    def identify(self, props: Props, *, is_new: bool) -> None:
        """Record what /props of the process says, unless that is known already.

        Args:
            props: the answer.
            is_new: whether the process started since the last sample.
        """
        if self._guard is None:
            self._guard, self.props = IdleGuard(props, is_new=is_new), props

    def forget(self) -> None:
        """Forget what the process said of itself: the next one may be another build."""
        self._guard = self.props = None

    def may_read(self, process: LlamaProcess | None) -> bool:
        """Return whether /metrics may be read in this sample."""
        return self._guard is not None and self._guard.may_read(process)

    def read(self) -> Metrics:
        """Read /metrics.

        Raises:
            RequestFailed: see `LlamaHttp.get`.
            ParseError: the answer is not in the format of /metrics.
        """
        answer = self._http.get("/metrics")
        metrics = Metrics(parse_exposition(answer.text), answer.headers.get(RUN_HEADER))
        if self._guard:
            self._guard.has_read()
        return metrics

    def is_another_process(self, metrics: Metrics) -> bool:
        """Return whether the process is another one than at the last call, as far as the header says."""
        before, self._run = self._run, metrics.run
        return before is not None and before != metrics.run
