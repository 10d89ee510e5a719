"""Real trouble: one table of input and right value for each class of bug."""
