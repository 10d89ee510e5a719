"""Readers of llama-server's output: log files through rotations, and the journal."""
