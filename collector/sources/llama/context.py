"""What the readers of one llama-server use of other sources and of the database."""

from dataclasses import dataclass

from collector.parsers.server_answers import ServedModel
from collector.sources.base import Source, Tick
from collector.sources.gpu.source import GpuDetail
from collector.sources.llama.model_rows import ModelIndex
from collector.sources.llama.processes import LlamaProcess, LlamaProcessSource


@dataclass(frozen=True, slots=True)
class ServerContext:
    """Everything beside HTTP that the rows of a server are made of.

    Args:
        server: name of the server, for the column `server`.
        processes: the llama-server processes of this machine.
        gpu: the GPUs of this machine; None where they are not read.
        models: the rows of `models`.
    """

    server: str
    processes: LlamaProcessSource
    gpu: Source[GpuDetail] | None
    models: ModelIndex

    def processes_of(self, tick: Tick) -> tuple[LlamaProcess, ...]:
        """Return the processes of this tick; none where they could not be read."""
        reading = tick.reading_of(self.processes)
        return reading.detail if reading else ()

    def gpus_of(self, tick: Tick) -> GpuDetail | None:
        """Return the GPUs of this tick; None where they were not read."""
        reading = tick.reading_of(self.gpu) if self.gpu else None
        return reading.detail if reading else None

    def model_id(self, model: ServedModel) -> str | None:
        """Return `models.id` of a model; None where the model has no row."""
        row = self.models.find(model)
        return row.id if row else None
