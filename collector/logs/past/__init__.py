"""Requests of the past: out of files, the journal, and rows of `logs` that an older version stored.

The same request may come several ways: it is one row.
"""
