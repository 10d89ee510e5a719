"""The HTTP endpoint of one process that serves a model: reads /metrics if that is harmless."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

from collector.health import State
from collector.parsers.exposition import parse_exposition
from collector.parsers.server_answers import Props, ServedModel
from collector.sources.llama.http import LlamaHttp
from collector.sources.llama.idle_guard import IdleGuard
from collector.sources.llama.local.process import LlamaProcess

UP = State("up")
METRICS_DISABLED = State("metrics off", "start llama-server with --metrics", level="warning", success=False)
NO_SUCH_PATH_STATUS, METRICS_DISABLED_STATUS = 404, 501
"""HTTP statuses of /metrics of a server without --metrics: 404 on builds of early 2024, else 501."""

RUN_HEADER = "process-start-time-unix"
"""Header with a number that is different in each process. In spite of its name it is not a Unix time."""


_START_RESOLUTION_SECONDS = 1.0
"""The process was measured a moment before /metrics was read."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """An answer of /metrics of one process.

    Args:
        samples: values by name.
        run_number: value of the header `RUN_HEADER`; None if the build does not send it.
    """

    samples: Mapping[str, float | None]
    run_number: str | None


@dataclass(frozen=True, slots=True)
class ServingProcess:
    """A process that serves a model, in one sample.

    Args:
        model: the model, which is loaded or sleeping.
        address: address of the process; empty if it is not known.
        process: its measurements; None if it is not visible from here.
        metrics: its answer of /metrics; None if that was not read.
        is_new: whether an earlier sample of this collector found that no process served the model.
        build: its build number; None if it is not known.
        slots: requests that it processes at the same time; None if that is not known.
    """

    model: ServedModel
    address: str
    process: LlamaProcess | None = None
    metrics: Metrics | None = None
    is_new: bool = False
    build: int | None = None
    slots: int | None = None

    def load_seconds(self) -> float | None:
        """Return how long the process took to load its model, from its start; None if that is not known.

        The number in the header of /metrics is the moment at which the model was ready, in microseconds of
        the monotonic clock of the server's machine: that of the process, if it is visible here.
        """
        run_number = self.metrics.run_number if self.metrics else None
        if self.process is None or run_number is None or not re.fullmatch(r"[0-9]{1,18}", run_number):
            return None
        # CLOCK_MONOTONIC leaves out the time for which the machine was suspended.
        suspended = time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
        seconds = int(run_number) / 1e6 + suspended - self.process.started_boot_seconds
        return seconds if 0 <= seconds <= self.process.uptime_seconds + _START_RESOLUTION_SECONDS else None


@dataclass(frozen=True, slots=True)
class ServerReading:
    """What one sample read from a server.

    Args:
        models: all its models.
        processes: one process for each model that is loaded or sleeping.
        state: state of the source.
        props: new answer of /props, if another process answered than before; None = the same process.
    """

    models: tuple[ServedModel, ...]
    processes: tuple[ServingProcess, ...] = ()
    state: State = UP
    props: Props | None = None


class ModelEndpoint:
    """The endpoint of the process that serves a model: a single server, or the child of a router.

    Reading /metrics of builds before b10531 wakes a sleeping model and keeps a loaded one awake. `may_read`
    returns when that does no harm: see `IdleGuard`.

    Args:
        http: connection to the process.
    """

    def __init__(self, http: LlamaHttp) -> None:
        self._http = http
        self._guard: IdleGuard | None = None
        self._run_number: str | None = None
        self.props: Props | None = None

    @property
    def is_harmless(self) -> bool:
        """Whether /metrics of this build can always be read; False while /props was not read."""
        return self._guard is not None and self._guard.is_harmless

    def set_props(self, props: Props, *, is_new: bool) -> None:
        """Store the answer of /props of the process, if none is stored.

        Args:
            props: the answer.
            is_new: whether the process started since the previous sample.
        """
        if self._guard is None:
            self._guard, self.props = IdleGuard(props, is_new=is_new), props

    def reset(self) -> None:
        """Remove the stored answer of /props: the next process may be another build."""
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
            self._guard.record_read()
        return metrics

    def is_new_process(self, metrics: Metrics) -> bool:
        """Return whether another process answered than at the previous call: the header has changed."""
        before, self._run_number = self._run_number, metrics.run_number
        return before is not None and before != metrics.run_number
