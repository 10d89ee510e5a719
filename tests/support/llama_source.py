"""The source of one llama-server for tests, which finds no llama-server process on this machine."""

from collector.database import Database
from collector.sources.llama.http import Address
from collector.sources.llama.processes import LlamaProcessSource
from collector.sources.llama.runs import ServerRuns
from collector.sources.llama.server import LlamaServerSource
from collector.sources.registry import build_llama_server


def llama_source(
    url: str, timeout: float, database: Database | None = None, api_key: str | None = None
) -> LlamaServerSource:
    """Return a source that the test itself reads; without a database it finds no stored rows and saves no model."""
    runs = ServerRuns(database.query if database else lambda *_: [])
    processes = LlamaProcessSource("no-such-process")
    return build_llama_server(Address(url, api_key, timeout), processes, None, database, runs)
