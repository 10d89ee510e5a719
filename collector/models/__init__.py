"""The inventory of model files: directory walk, header reader, rows of `models`."""
