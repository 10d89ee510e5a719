"""llama-server: its state, its models, and what /metrics says of each that is loaded.

Only requests that load, wake and evict nothing are sent: /props, a router's /models, and /metrics of a
model's own process where reading that keeps no model awake.
"""

from collections.abc import Mapping, Sequence

from collector.errors import (
    DatabaseError,
    InvalidAnswer,
    ParseError,
    ServerBusy,
    ServerDown,
    ServerUnreachable,
    UnexpectedStatus,
)
from collector.health import State
from collector.parsers.server_answers import Props, ServedModel, parse_props
from collector.schema import Row, SqlValue, Table, Write
from collector.settings import API_KEY_VARIABLE
from collector.sources.base import Reading, Tick
from collector.sources.llama.context import ServerContext
from collector.sources.llama.endpoint import ServedProcess
from collector.sources.llama.events import MODEL_EVENTS, ModelEvents
from collector.sources.llama.http import Address, LlamaHttp
from collector.sources.llama.metrics import LLAMA_METRICS, RunSpeeds, metrics_row
from collector.sources.llama.model_rows import ModelStatuses
from collector.sources.llama.router import Router
from collector.sources.llama.run_table import SERVER_RUNS
from collector.sources.llama.runs import ENDED, Observation, ServerRuns, Sighting, counters_of
from collector.sources.llama.single import SingleServer

_START = "Start llama-server there, or change [llama_server] url"
_IS_IT = (
    "Is it a llama-server? Check [llama_server] url, and its prefix if llama-server runs with --api-prefix"
)


class LlamaServerSource:
    """One llama-server, single or router.

    Args:
        address: where it is.
        context: its name, processes, GPUs and the rows of `models`.
        runs: the processes that serve models, of all servers.
        statuses: `models.status` over all servers.
    """

    name = "llama_server"
    tables: tuple[Table, ...] = (SERVER_RUNS, LLAMA_METRICS, MODEL_EVENTS)
    defaults: Mapping[str, SqlValue] = {"active_models": None}

    def __init__(
        self,
        address: Address,
        context: ServerContext,
        runs: ServerRuns,
        statuses: ModelStatuses,
    ) -> None:
        self._url = address.url
        self._context = context
        self._runs = runs
        self._statuses = statuses
        self._http = LlamaHttp(address)
        self._single = SingleServer(address.url, self._http, context)
        self._router = Router(address, self._http, context)
        self._events = ModelEvents(context.server, context.models, runs)
        self._speeds: dict[int, RunSpeeds] = {}
        self._props: Props | None = None

    def read(self, tick: Tick) -> Reading[None]:
        """Read once; a server that is away, loading or busy is a state, not an error."""
        try:
            return self._read(tick)
        except ServerDown as error:
            if not isinstance(error, ServerUnreachable):
                self._single.was_down()
            changes = self._record(tick, self._events.models_after_end(), None, None, outcome=ENDED)
            changes += self._runs.end_absent(self._context.server, (), tick.timestamp)
            return self._away("down", f"nothing listens at {self._url} ({error}). {_START}", 0, changes)
        except ServerBusy as error:
            return _without_rows(State("busy", f"{error}: no sample"), None)
        except UnexpectedStatus as error:
            return self._refused(tick, error.status)
        except (InvalidAnswer, ParseError) as error:
            return self._away("wrong answer", f"{self._url}: {error}. {_IS_IT}", None)

    def close(self) -> None:
        """Close all connections."""
        self._router.close()
        self._http.close()

    def _read(self, tick: Tick) -> Reading[None]:
        self._props = props = self._props or parse_props(self._http.get("/props").text)
        reading = self._router.read(tick) if props.is_router else self._single.read(tick, props)
        self._props = props = reading.props or props
        rows, changes = self._rows(tick, reading.processes)
        changes += self._record(tick, reading.models, props.build, props.max_instances)
        in_memory = (served.model.name for served in reading.processes)
        changes += self._runs.end_absent(self._context.server, in_memory, tick.timestamp)
        return Reading(
            None,
            rows=tuple((LLAMA_METRICS, row) for row in rows),
            snapshot={"active_models": sum(model.state == "loaded" for model in reading.models)},
            state=reading.state,
            changes=changes,
        )

    def _rows(self, tick: Tick, processes: Sequence[ServedProcess]) -> tuple[list[Row], list[Write]]:
        """Return the rows of the processes that were read, and what changed of their runs."""
        rows, changes, speeds = [], [], {}
        gpus = self._context.gpus_of(tick)
        for served in processes:
            metrics = served.metrics
            sighting = Sighting(
                tick.timestamp,
                self._context.server,
                served.address,
                served.model,
                self._context.model_id(served.model),
                served.process,
                metrics.run if metrics else None,
                counters_of(metrics.samples) if metrics else None,
                is_new=served.is_new,
                build=served.build,
                slots=served.slots,
                gpus=gpus,
            )
            observation = self._observe(sighting)
            if observation:
                changes += observation.changes
                speeds[observation.run_id] = self._speeds.get(observation.run_id) or RunSpeeds(
                    from_zero=observation.counted_from_zero
                )
            if metrics:
                values = speeds[observation.run_id].update(metrics.samples) if observation else {}
                rows.append(metrics_row(sighting, metrics.samples, values, observation))
        self._speeds = speeds
        return rows, changes

    def _observe(self, sighting: Sighting) -> Observation | None:
        try:
            return self._runs.observe(sighting)
        except DatabaseError:  # in the first sample: what earlier collectors recorded cannot be read yet
            return None

    def _record(
        self,
        tick: Tick,
        models: Sequence[ServedModel],
        build: int | None,
        max_loaded: int | None,
        outcome: str | None = None,
    ) -> list[Write]:
        """Return events and statuses of the models of one sample."""
        self._context.models.add_missing(models)
        try:
            compared = self._events.compare(models, max_loaded)
        except DatabaseError:
            return []  # the next sample compares again
        statuses = self._statuses.update(self._context.server, tick.timestamp, self._events.known_models())
        return statuses + self._events.writes(tick.timestamp, compared, build, outcome)

    def _refused(self, tick: Tick, status: int) -> Reading[None]:
        """Return what an HTTP status means."""
        match status:
            case 503:
                self._single.was_loading()
                models = self._single.loading_model(tick)
                changes = self._record(tick, models, None, None) if models else []
                return self._away("loading", "it loads its model", 0, changes)
            case 401:
                return self._away(
                    "needs key",
                    "it wants its API key: put it into a file and name that in [llama_server] api_key_file, "
                    f"or set {API_KEY_VARIABLE}",
                    None,
                )
            case 403:
                return self._away("needs key", "it refuses the API key of [llama_server] api_key_file", None)
            case 404:
                message = (
                    f"it has no such path: is its --api-prefix at the end of [llama_server] url? {_START}"
                )
                return self._away("not found", message, None)
            case _:
                return self._away("wrong answer", f"{self._url} answers {status}. {_IS_IT}", None)

    def _away(
        self, name: str, message: str, active: int | None, changes: Sequence[Write] = ()
    ) -> Reading[None]:
        """Return a reading without rows; what answers next may be another server, with other models."""
        self._props = None
        self._single.was_away()
        self._router.close()
        harmless = name == "loading"
        state = State(name, message, level="info" if harmless else "warning", success=harmless)
        return _without_rows(state, active, changes)


def _without_rows(state: State, active: int | None, changes: Sequence[Write] = ()) -> Reading[None]:
    return Reading(None, snapshot={"active_models": active}, state=state, changes=changes)
