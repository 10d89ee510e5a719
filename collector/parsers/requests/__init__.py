"""Requests out of the log of llama-server: the lines that tell of them, and the tracker that joins these."""
