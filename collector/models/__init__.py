"""The inventory of model files: directory walk, headers, `model_files`, and the rows of `models`."""
