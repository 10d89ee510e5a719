"""llama-collector: the passive historian of a llama.cpp host."""

__version__ = "0.1.0"
