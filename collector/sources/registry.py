"""All sources, in the order in which they may look at each other's readings."""

from pathlib import Path
from typing import Any

from collector.config import LlamaServerSettings, Settings
from collector.database import Database
from collector.sources.base import Source
from collector.sources.disk import DiskSource
from collector.sources.gpu import GPU_METRICS, GpuSource
from collector.sources.host import HOST_METRICS, HostSource
from collector.sources.llama_process import LlamaProcessSource
from collector.sources.llama_server import LLAMA_METRICS, FindModelId, LlamaServerSource
from collector.table import Table

SOURCE_TABLES: tuple[Table, ...] = (HOST_METRICS, GPU_METRICS, LLAMA_METRICS)


def build_sources(settings: Settings, api_key: str | None, find_model_id: FindModelId) -> list[Source[Any]]:
    """Every source that the settings ask for."""
    disk = DiskSource(settings.models_directory)
    processes = LlamaProcessSource(settings.llama_server.process_name)
    gpu = GpuSource() if settings.gpu.enabled else None
    sources: list[Source[Any]] = [disk, HostSource(disk), processes]
    if gpu:
        sources.append(gpu)
    if settings.llama_server.url:
        sources.append(_llama_server(settings.llama_server, api_key, processes, gpu, find_model_id))
    return sources


def _llama_server(
    server: LlamaServerSettings,
    api_key: str | None,
    processes: LlamaProcessSource,
    gpu: GpuSource | None,
    find_model_id: FindModelId,
) -> LlamaServerSource:
    from collector.sources.llama_http import LlamaHttp  # httpx is 10 MB: only where a server is watched

    http = LlamaHttp(server.url, api_key, server.timeout)
    return LlamaServerSource(http, server.url, processes, gpu, find_model_id)


def model_finder(database: Database) -> FindModelId:
    """Looks `models.id` up by path, symbolic links resolved, else by name."""

    def find(name: str, path: str | None) -> str | None:
        candidates = [path, str(Path(path).resolve())] if path else []
        rows = database.query(
            "SELECT id FROM models WHERE model_path IN (?, ?) "
            "UNION ALL SELECT id FROM models WHERE name = ? LIMIT 1",
            (*(candidates or (None, None)), name),
        )
        return rows[0]["id"] if rows else None

    return find
