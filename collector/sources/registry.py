"""All sources. Each one comes after those whose readings it uses."""

import threading
from typing import Any

from collector.database.database import Database
from collector.schema import Table
from collector.settings import LlamaServerSettings, Settings
from collector.sources.base import Source
from collector.sources.disk import DiskSource
from collector.sources.gpu.source import GpuSource
from collector.sources.host import HostSource
from collector.sources.llama.context import ServerContext
from collector.sources.llama.http import Address, listening_address
from collector.sources.llama.model_rows import ModelIndex, ModelStatuses
from collector.sources.llama.processes import LlamaProcessSource
from collector.sources.llama.runs import ServerRuns
from collector.sources.llama.server import LlamaServerSource
from collector.sources.upgrade import RowUpgrade

SOURCE_TYPES = (DiskSource, HostSource, LlamaProcessSource, GpuSource, LlamaServerSource)
SOURCE_TABLES: tuple[Table, ...] = tuple(table for source in SOURCE_TYPES for table in source.tables)


def build_sources(
    settings: Settings, api_key: str | None, database: Database, runs: ServerRuns
) -> list[Source[Any]]:
    """Return the sources that the settings enable, in the order in which they are read.

    Args:
        settings: checked settings.
        api_key: API key of llama-server; None for none.
        database: read for stored runs, events and energy; rows of new models are saved to it.
        runs: the runs of all servers.
    """
    query = database.query
    disk = DiskSource(settings.models_directories[0])
    processes = LlamaProcessSource(settings.llama_server.process_name, settings.llama_server.url)
    gpu = GpuSource(query) if settings.gpu.enabled else None
    sources: list[Source[Any]] = [disk, HostSource(disk), processes]
    if gpu:
        sources.append(gpu)
    if settings.llama_server.url:
        server = settings.llama_server
        address = Address(server.url, api_key, server.timeout)
        sources.append(build_llama_server(address, processes, gpu, database, runs))
    return sources


def build_llama_server(
    address: Address,
    processes: LlamaProcessSource,
    gpu: GpuSource | None,
    database: Database | None,
    runs: ServerRuns,
) -> LlamaServerSource:
    """Return the source of one llama-server.

    Args:
        address: address of the server.
        processes: the source of the llama-server processes of this machine.
        gpu: the source of the GPUs of this machine; None if they are not read.
        database: the database; None for a source whose rows are not stored, as in the command `check`.
        runs: the runs of all servers.
    """
    name = listening_address(address.url)
    models = ModelIndex(database)
    context = ServerContext(name, processes, gpu, models)
    return LlamaServerSource(address, context, runs, ModelStatuses(models, (name,)))


def build_upgrade(
    settings: Settings, database: Database, runs: ServerRuns, stop: threading.Event
) -> RowUpgrade:
    """Return the upgrade of the rows of version 0.1.0.

    Args:
        settings: version 0.1.0 sampled only the server of `[llama_server] url`, or the one at its default.
        database: the database with the rows.
        runs: provides ids of runs.
        stop: set to end the upgrade early.
    """
    url = settings.llama_server.url or LlamaServerSettings().url
    return RowUpgrade(database, runs, listening_address(url), stop)
