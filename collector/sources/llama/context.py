"""What `Router` and `SingleServer` need from other sources and from the database."""

from dataclasses import dataclass

from collector.parsers.server_answers import ServedModel
from collector.sources.base import Source, Tick
from collector.sources.gpu.source import GpuDetail
from collector.sources.llama.local.process import LlamaProcess
from collector.sources.llama.model_rows import ModelIndex
from collector.sources.llama.processes import LlamaProcessSource


@dataclass(frozen=True, slots=True)
class ServerContext:
    """Access of one llama-server source to other sources and to `models`.

    Args:
        server: name of the server, as in the column `server`.
        processes: the source of the llama-server processes of this machine.
        gpu: the source of the GPUs of this machine; None if they are not read.
        models: the rows of `models`.
    """

    server: str
    processes: LlamaProcessSource
    gpu: Source[GpuDetail] | None
    models: ModelIndex

    def processes_of(self, tick: Tick) -> tuple[LlamaProcess, ...]:
        """Return the llama-server processes of this tick; empty if they could not be read."""
        reading = tick.reading_of(self.processes)
        return reading.detail if reading else ()

    def gpus_of(self, tick: Tick) -> GpuDetail | None:
        """Return the GPUs of this tick; None if they were not read."""
        reading = tick.reading_of(self.gpu) if self.gpu else None
        return reading.detail if reading else None

    def model_id(self, model: ServedModel) -> str | None:
        """Return `models.id` of a model; None if the model has no row."""
        row = self.models.find(model)
        return row.id if row else None
