"""Parser of /metrics of llama-server, in the text format of Prometheus.

https://prometheus.io/docs/instrumenting/exposition_formats/ describes the format. llama-server uses a
small part of it: no timestamps, and labels on one name only.
"""

import json
import math

from collector.errors import ParseError

PREFIX = "llamacpp:"
_EXACT_BELOW = 1_000_000
"""Integers below this limit are printed with all their digits."""
_LARGEST_COUNTER = 2.0**63
"""No count of tokens or seconds comes near it."""

MAX_SAMPLES = 500
MAX_NAME_CHARACTERS = 200
"""Bounds of an answer, more than any build needs: all its values are stored in each row."""


def parse_exposition(text: str) -> dict[str, float | None]:
    """Return the values of all lines that begin with `llamacpp:`.

    A name includes its labels, as in `name{label="value"}`. `nan`, the infinities and what no counter can be
    become None. Comments and lines with another prefix are skipped.

    Args:
        text: body of the answer. Builds b7010 to about b7180 sent it as one quoted JSON string, which is
            accepted too.

    Returns:
        values by name, without the prefix, in the order of the text.

    Raises:
        ParseError: the text is not in this format.
    """
    samples: dict[str, float | None] = {}
    if text.startswith('"'):
        try:
            text = str(json.loads(text))
        except ValueError as error:
            raise ParseError(f"/metrics begins like a JSON string but is not one: {error}") from error
    *lines, rest = text.split("\n")
    for line in lines:
        if line.startswith(PREFIX):
            name, value = _parse_sample(line)
            samples[name] = value
            if len(samples) > MAX_SAMPLES:
                raise ParseError(f"/metrics contains more than {MAX_SAMPLES} values")
    if not samples:
        raise ParseError(f"/metrics contains no {PREFIX} value; it begins with {text[:60]!r}")
    if rest:  # the last line has no newline: its number may be incomplete
        raise ParseError(f"/metrics is cut off: it ends with {rest[-60:]!r}")
    return samples


def _parse_sample(line: str) -> tuple[str, float | None]:
    """Return the name, without the prefix, and the value of one line."""
    name, _, value = line[len(PREFIX) :].rstrip().rpartition(" ")
    try:
        number = float(value)
    except ValueError as error:
        raise ParseError(f"/metrics: no number in {line[:80]!r}") from error
    if not (name := name.rstrip()):
        raise ParseError(f"/metrics: no name in {line[:80]!r}")
    if len(name) > MAX_NAME_CHARACTERS:
        raise ParseError(f"/metrics: a name is longer than {MAX_NAME_CHARACTERS} characters: {name[:80]!r}")
    # A counter that was decremented below 0 is printed as a negative number, or as one near 2**64.
    is_possible = math.isfinite(number) and (not _is_counter(name) or 0 <= number < _LARGEST_COUNTER)
    return name, number if is_possible else None


def _is_counter(name: str) -> bool:
    return name.partition("{")[0].endswith("_total")


def resolution(value: float, *, whole: bool) -> float:
    """Return the resolution of a counter, which llama-server prints with 6 significant digits.

    Example: 12,345,678 tokens are printed as 1.23457e+07, so that the resolution is 100.

    Args:
        value: the counter as it was read.
        whole: whether it is an integer, which is printed exactly below a million.

    Returns:
        the difference between two values that are printed next to each other; 0 if the value is exact.
    """
    if value == 0 or (whole and value < _EXACT_BELOW):
        return 0.0
    return float(10.0 ** (math.floor(math.log10(abs(value))) - 5))
