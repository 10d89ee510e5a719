"""All sources, in an order in which each one comes after those whose readings it uses."""

from typing import Any

from collector.schema import Table
from collector.settings import LlamaServerSettings, Settings
from collector.sources.base import Source
from collector.sources.disk import DiskSource
from collector.sources.gpu.source import GpuSource
from collector.sources.host import HostSource
from collector.sources.llama.http import Address
from collector.sources.llama.model_index import Query
from collector.sources.llama.processes import LlamaProcessSource
from collector.sources.llama.server import LlamaServerSource

SOURCE_TYPES = (DiskSource, HostSource, LlamaProcessSource, GpuSource, LlamaServerSource)
SOURCE_TABLES: tuple[Table, ...] = tuple(table for source in SOURCE_TYPES for table in source.tables)


def build_sources(settings: Settings, api_key: str | None, query: Query) -> list[Source[Any]]:
    """Return every source that the settings enable.

    Args:
        settings: the settings.
        api_key: the key of llama-server, if it needs one.
        query: reads the database.
    """
    disk = DiskSource(settings.models_directories[0])
    processes = LlamaProcessSource(settings.llama_server.process_name)
    gpu = GpuSource(query) if settings.gpu.enabled else None
    sources: list[Source[Any]] = [disk, HostSource(disk), processes]
    if gpu:
        sources.append(gpu)
    if settings.llama_server.url:
        sources.append(_llama_server(settings.llama_server, api_key, processes, gpu, query))
    return sources


def _llama_server(
    server: LlamaServerSettings,
    api_key: str | None,
    processes: LlamaProcessSource,
    gpu: GpuSource | None,
    query: Query,
) -> LlamaServerSource:
    address = Address(server.url, api_key, server.timeout)
    return LlamaServerSource(address, processes=processes, gpu=gpu, query=query)
