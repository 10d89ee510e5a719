"""Bytes from outside into values: no input, no output, tested on literals and recordings."""
