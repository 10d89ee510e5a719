"""Backups: copies of the database, their verification, restoring them, and SQL text."""
