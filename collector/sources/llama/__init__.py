"""llama-server: its processes, its state, its models and their metrics."""
