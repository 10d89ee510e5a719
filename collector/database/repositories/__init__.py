"""The documented operations on the documented tables."""
