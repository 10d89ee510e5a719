"""Locks: the right of one collector to write a database, and who else holds one."""
