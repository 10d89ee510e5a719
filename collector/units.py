"""Units that more than one room counts in."""

BYTES_PER_MB = 2**20
"""What the documented schema calls a megabyte."""
