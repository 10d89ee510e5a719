"""What is sampled: one file a source, each with its columns and its reading."""
