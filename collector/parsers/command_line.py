"""Options in the command line of a llama-server process."""

from collections.abc import Sequence

SECRET_OPTIONS = ("--api-key", "--api-key-file", "--hf-token", "-hft")
"""Options whose value is a secret, or the path of a file that contains one."""

MASK = "***"


def option(arguments: Sequence[str], *names: str) -> str | None:
    """Return the value of an option in either form, `--port 8080` or `--port=8080`; None without it.

    llama.cpp uses the last one where an option is repeated, and so does this.

    Args:
        arguments: the command line.
        names: all spellings of the option.
    """
    for position, argument in reversed(tuple(enumerate(arguments))):
        if argument in names:
            return next(iter(arguments[position + 1 :]), None)
        name, separator, value = argument.partition("=")
        if separator and name in names:
            return value
    return None


def mask_secrets(arguments: Sequence[str]) -> list[str]:
    """Return the command line with the values of secret options replaced by `***`."""
    masked = list(arguments)
    for position, argument in enumerate(arguments):
        name, separator, _ = argument.partition("=")
        if name not in SECRET_OPTIONS:
            continue
        if separator:
            masked[position] = f"{name}={MASK}"
        elif position + 1 < len(masked):
            masked[position + 1] = MASK
    return masked
