"""Coverage-guided fuzzing of everything that reads bytes from outside.

`targets` defines the readers and their properties, `seeds` the first inputs, `cost` the bounds of time and
memory. The command line in `__main__` needs atheris; the other modules do not.
"""
