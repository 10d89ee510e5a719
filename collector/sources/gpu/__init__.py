"""GPU metrics: one table, and a reader for each vendor."""
