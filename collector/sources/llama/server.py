"""The source of one llama-server: its state, its models, and /metrics of each loaded model.

It sends only requests that load, wake and evict no model: /props, /models of a router, and /metrics of the
process that serves a model, if reading it does not keep the model awake.
"""

import time
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import replace

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
from collector.sources.llama.endpoint import ServingProcess
from collector.sources.llama.events import MODEL_EVENTS, NOTHING_OBSERVED, ModelEvents, Observed
from collector.sources.llama.http import Address, LlamaHttp
from collector.sources.llama.local.addresses import is_local, process_at
from collector.sources.llama.metrics import LLAMA_METRICS, RunSpeeds, metrics_row
from collector.sources.llama.model_rows import ModelStatuses
from collector.sources.llama.router import Router
from collector.sources.llama.run_table import SERVER_RUNS, counters_of
from collector.sources.llama.runs import ENDED, ObservedProcess, ServerRuns
from collector.sources.llama.single import SingleServer

_START = "Start llama-server there, or change [llama_server] url"
_IS_IT_LLAMA_SERVER = (
    "Is it a llama-server? Check [llama_server] url, and its prefix if llama-server runs with --api-prefix"
)


class LlamaServerSource:
    """The source of one llama-server, which is a router or serves a single model.

    Args:
        address: address of the server.
        context: its name, and access to other sources.
        runs: the runs of all servers.
        statuses: `models.status`, which depends on all servers.
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
        self._working: AbstractSet[str] = frozenset()
        self._used: dict[str, tuple[tuple[str, float | None], float]] = {}

    def read(self, tick: Tick) -> Reading[None]:
        """Read the server once. A server that is down, loading or busy is a state, not an error."""
        try:
            return self._read(tick)
        except ServerUnreachable as error:
            # It may be running, and its models loaded: no run ends, and its counters need not start at 0.
            message = (
                f"{self._url} cannot be reached ({error}): is its machine switched on, and the URL right?"
            )
            return self._disconnected("unreachable", message, None)
        except ServerDown as error:
            self._single.record_down()
            ended = self._events.models_after_server_end(self._working)
            changes = self._record(tick, ended, outcome=ENDED)
            changes += self._runs.end_others(self._context.server, (), tick.timestamp)
            message = f"nothing listens at {self._url} ({error}). {_START}"
            reading = self._disconnected("down", message, 0, changes)
            return replace(reading, snapshot={**reading.snapshot, **self._usage_without_server(tick)})
        except ServerBusy as error:
            return _without_rows(State("busy", f"{error}: no sample"), None)
        except UnexpectedStatus as error:
            return self._reading_of_status(tick, error.status)
        except (InvalidAnswer, ParseError) as error:
            message = f"{self._url}: {error}. {_IS_IT_LLAMA_SERVER}"
            return self._disconnected("wrong answer", message, None)

    def _usage_without_server(self, tick: Tick) -> dict[str, SqlValue]:
        """Return the columns of `metrics` about processes after a refused connection.

        Processes of this machine may be starting, or listen elsewhere. Without any, none runs: 0.
        """
        processes = self._context.processes_of(tick) if is_local(self._url) else ()
        return self._context.processes.usage_of(processes, process_at(self._url, processes))

    def close(self) -> None:
        """Close all connections."""
        self._router.close()
        self._http.close()

    def _read(self, tick: Tick) -> Reading[None]:
        self._props = props = self._props or parse_props(self._http.get("/props").text)
        reading = self._router.read(tick) if props.is_router else self._single.read(tick, props)
        self._props = props = reading.props or props
        self._context.models.add_missing(reading.models)
        rows, changes, observed = self._rows(tick, reading.processes)
        in_memory = [served.model.name for served in reading.processes]
        in_memory += self._events.waking_models(reading.models)
        changes += self._record(tick, reading.models, props, observed=observed)
        changes += self._statuses.record_options(self._context.server, tick.timestamp, reading.models)
        changes += self._runs.end_others(self._context.server, in_memory, tick.timestamp)
        return Reading(
            None,
            rows=tuple((LLAMA_METRICS, row) for row in rows),
            snapshot={"active_models": sum(model.state == "loaded" for model in reading.models)},
            state=reading.state,
            changes=changes,
        )

    def _rows(
        self, tick: Tick, processes: Sequence[ServingProcess]
    ) -> tuple[list[Row], list[Write], Observed]:
        """Return the rows of `llama_metrics`, the changed rows of `server_runs`, and what events need."""
        rows, changes, speeds = [], [], {}
        restarted = set()
        gpus = self._context.gpus_of(tick)
        for served in processes:
            metrics = served.metrics
            observed = ObservedProcess(
                tick.timestamp,
                self._context.server,
                served.address,
                served.model,
                self._context.model_id(served.model),
                served.process,
                metrics.run_number if metrics else None,
                counters_of(metrics.samples) if metrics else None,
                is_new=served.is_new,
                build=served.build,
                slots=served.slots,
                gpus=gpus,
            )
            assignment, values = None, {}
            with suppress(DatabaseError):  # only until the runs of earlier collectors have been read
                assignment = self._runs.assign(observed)
            if assignment:
                run_id = assignment.run_id
                changes += assignment.changes
                if assignment.is_restart:
                    restarted.add(served.model.name)
                # A run without a row has no speeds: whether they begin at 0 depends on its first /metrics.
                if stored := self._speeds.get(run_id):
                    speeds[run_id] = stored
                elif metrics:
                    speeds[run_id] = RunSpeeds(from_zero=assignment.counted_from_zero)
                values = speeds[run_id].update(metrics.samples) if metrics else {}
            if metrics:
                row = metrics_row(observed, metrics.samples, values, assignment)
                if assignment and assignment.counted_from_zero:
                    # Never dropped: without it, the work of the run before its second row would be lost.
                    changes.append(LLAMA_METRICS.insert(row))
                else:
                    rows.append(row)
        self._speeds = speeds
        return rows, changes, self._observed(processes, restarted)

    def _observed(self, processes: Sequence[ServingProcess], restarted: AbstractSet[str]) -> Observed:
        """Return what this sample measured of the processes of the models."""
        # The newest values before this sample: of a process that was replaced since then.
        working = self._working & restarted
        present = {served.model.name for served in processes}
        used_at = {name: moment for name, (_, moment) in self._used.items()}
        self._used = {name: used for name, used in self._used.items() if name in present}
        for served in processes:
            if served.metrics is None:
                continue
            name, samples = served.model.name, served.metrics.samples
            if self._props and not self._props.is_router:
                self._working = frozenset((name,)) if samples.get("requests_processing") else frozenset()
            seen = (served.address, samples.get("n_decode_total"))
            if self._used.get(name, (None, 0.0))[0] != seen:
                self._used[name] = (seen, time.monotonic())
        return Observed(
            restarted=restarted,
            working=working,
            load_seconds={
                served.model.name: seconds
                for served in processes
                if (seconds := served.load_seconds()) is not None
            },
            used_at=used_at | {name: moment for name, (_, moment) in self._used.items()},
        )

    def _record(
        self,
        tick: Tick,
        models: Sequence[ServedModel],
        props: Props | None = None,
        outcome: str | None = None,
        observed: Observed = NOTHING_OBSERVED,
    ) -> list[Write]:
        """Return the rows of `models`, `model_events` and `server_runs` that change with states of models.

        Args:
            tick: the present tick.
            models: the models with their new states.
            props: the answer of /props of the server; None if it did not answer.
            outcome: outcome of all runs that end; None = as the events say.
            observed: what this sample measured of the processes.
        """
        try:
            compared = self._events.compare(models, props.max_instances if props else None, observed)
        except DatabaseError:
            return []  # before the first sample: the next one compares with the stored events
        statuses = self._statuses.update(self._context.server, tick.timestamp, self._events.reported_models())
        return statuses + self._events.writes(
            tick.timestamp, compared, props.build if props else None, outcome
        )

    def _reading_of_status(self, tick: Tick, status: int) -> Reading[None]:
        """Return the reading of a server that answers with an HTTP status other than 200."""
        match status:
            case 503:
                self._single.record_loading()
                models = self._single.loading_model(tick)
                self._context.models.add_missing(models)
                changes = self._record(tick, models) if models else []
                return self._disconnected("loading", "it loads its model", 0, changes)
            case 401:
                message = (
                    "it requires its API key: write it to a file and name that in [llama_server] "
                    f"api_key_file, or set {API_KEY_VARIABLE}"
                )
                return self._disconnected("needs key", message, None)
            case 403:
                message = "it refuses the API key of [llama_server] api_key_file"
                return self._disconnected("needs key", message, None)
            case 404:
                message = (
                    f"it has no such path: is its --api-prefix at the end of [llama_server] url? {_START}"
                )
                return self._disconnected("not found", message, None)
            case _:
                message = f"{self._url} answers {status}. {_IS_IT_LLAMA_SERVER}"
                return self._disconnected("wrong answer", message, None)

    def _disconnected(
        self, name: str, message: str, active: int | None, changes: Sequence[Write] = ()
    ) -> Reading[None]:
        """Remove all that is stored about the server, and return a reading without rows.

        The next answer may be that of another server, such as a newer build with other models.

        Args:
            name: name of the state.
            message: what happened, and what to change.
            active: value of `metrics.active_models`.
            changes: rows that must be written.
        """
        self._props = None
        self._single.reset()
        self._router.close()
        harmless = name == "loading"
        state = State(name, message, level="info" if harmless else "warning", success=harmless)
        return _without_rows(state, active, changes)


def _without_rows(state: State, active: int | None, changes: Sequence[Write] = ()) -> Reading[None]:
    return Reading(None, snapshot={"active_models": active}, state=state, changes=changes)
