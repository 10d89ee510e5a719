"""llama-server: its state, its models, and what /metrics says of each that is loaded.

It is only ever asked what loads, wakes and evicts nothing: /props, a router's /models, and /metrics of a
model's own process where reading that keeps no model awake.
"""

from collections.abc import Mapping, Sequence

from collector.errors import InvalidAnswer, ParseError, ServerBusy, ServerDown, UnexpectedStatus
from collector.health import State
from collector.parsers.server_answers import Props, parse_props
from collector.schema import SqlValue, Write
from collector.settings import API_KEY_VARIABLE
from collector.sources.base import Reading, Source, Tick
from collector.sources.gpu.source import GpuDetail
from collector.sources.llama.events import MODEL_EVENTS, ModelHistory
from collector.sources.llama.http import Address, LlamaHttp
from collector.sources.llama.metrics import LLAMA_METRICS
from collector.sources.llama.model_index import ModelIndex, Query
from collector.sources.llama.neighbours import Neighbours
from collector.sources.llama.processes import LlamaProcessSource
from collector.sources.llama.router import Router
from collector.sources.llama.single import Seen, SingleServer

_START = "Start llama-server there, or change [llama_server] url"
_IS_IT = (
    "Is it a llama-server? Check [llama_server] url, and its prefix if llama-server runs with --api-prefix"
)


class LlamaServerSource:
    """One llama-server, single or router.

    Args:
        address: where it is.
        processes: the llama-server processes of this machine.
        gpu: the source of GPU memory by process id; None where GPUs are not read.
        query: reads the database.
    """

    name = "llama_server"
    tables = (LLAMA_METRICS, MODEL_EVENTS)
    defaults: Mapping[str, SqlValue] = {"active_models": None}

    def __init__(
        self,
        address: Address,
        *,
        processes: LlamaProcessSource,
        gpu: Source[GpuDetail] | None,
        query: Query,
    ) -> None:
        self._url = address.url
        self._http = LlamaHttp(address)
        neighbours = Neighbours(processes, gpu, ModelIndex(query))
        self._single = SingleServer(address.url, self._http, neighbours)
        self._router = Router(address, self._http, neighbours)
        self._history = ModelHistory(query, neighbours.index)
        self._props: Props | None = None

    def read(self, tick: Tick) -> Reading[None]:
        """Look once; a server that is away, loading or busy is a state, not an error."""
        try:
            return self._look(tick)
        except ServerDown as error:
            self._single.was_down()
            changes = self._history.server_ended(tick.timestamp)
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

    def _look(self, tick: Tick) -> Reading[None]:
        self._props = props = self._props or parse_props(self._http.get("/props").text)
        seen = (self._router if props.is_router else self._single).look(tick, props)
        return Reading(
            None,
            rows=tuple((LLAMA_METRICS, row) for row in seen.rows),
            snapshot={"active_models": _active(seen)},
            state=seen.state,
            changes=self._history.follow(tick.timestamp, seen.models, props.build, props.max_instances),
        )

    def _refused(self, tick: Tick, status: int) -> Reading[None]:
        """What a status says."""
        match status:
            case 503:
                models = self._single.loading_model(tick)
                changes = self._history.follow(tick.timestamp, models, None, None) if models else ()
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
        """Nothing can be read; what comes next may be another server, with other models."""
        self._props = None
        self._single.was_away()
        self._router.close()
        harmless = name == "loading"
        state = State(name, message, level="info" if harmless else "warning", success=harmless)
        return _without_rows(state, active, changes)


def _without_rows(state: State, active: int | None, changes: Sequence[Write] = ()) -> Reading[None]:
    return Reading(None, snapshot={"active_models": active}, state=state, changes=changes)


def _active(seen: Seen) -> int:
    return sum(model.state == "loaded" for model in seen.models)
