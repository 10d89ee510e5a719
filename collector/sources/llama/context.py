"""What other sources and the database know of a model's process."""

from collections.abc import Mapping
from dataclasses import dataclass

from collector.parsers.server_answers import ServedModel
from collector.sources.base import Source, Tick
from collector.sources.gpu.source import GpuDetail
from collector.sources.llama.model_index import ModelIndex
from collector.sources.llama.processes import LlamaProcess, LlamaProcessSource


@dataclass(frozen=True, slots=True)
class Neighbours:
    """What other sources and the database know, for the rows of a model.

    Args:
        processes: the llama-server processes of this machine.
        gpu: GPU memory in MB by process id; None where GPUs are not read.
        index: the rows of `models`.
    """

    processes: LlamaProcessSource
    gpu: Source[GpuDetail] | None
    index: ModelIndex

    def processes_of(self, tick: Tick) -> tuple[LlamaProcess, ...]:
        """All of this tick; none where they could not be read."""
        reading = tick.reading_of(self.processes)
        return reading.detail if reading else ()

    def gpu_memory_of(self, tick: Tick) -> Mapping[int, float]:
        """MB by process id; empty where it is not known."""
        reading = tick.reading_of(self.gpu) if self.gpu else None
        return reading.detail.process_memory_mb if reading else {}

    def id_of(self, model: ServedModel) -> str | None:
        """`models.id`; None where the model has no row."""
        row = self.index.find(model)
        return row.id if row else None
