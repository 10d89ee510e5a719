"""Coverage-guided fuzzing of everything that reads bytes from outside.

`targets` says what is read and what must hold then, `seeds` where it begins, `cost` what it may take. The
command line in `__main__` needs atheris; the other modules do not.
"""
