"""Backups: copies of the database, their verification, and restoring one."""
