"""Values of a database as SQL literals that SQLite reads back as exactly the same values."""

import math
import re
from collections.abc import Callable
from typing import Any

_UNSAFE = re.compile(b"[\\0\\r]")
_MIN_DECIMAL, _MAX_DECIMAL = 1e-9, 1e15


class Text(bytes):
    """A text of the database as its bytes, which need not be valid UTF-8."""

    __slots__ = ()


def literal_functions(encoding: str) -> dict[type, Callable[[Any], bytes]]:
    """Return for each type of value the function that writes it as a literal.

    Args:
        encoding: of the database, as `PRAGMA encoding` returns it.
    """

    def text_literal(value: Text) -> bytes:
        # In a quoted text a NUL would end the statement, and the sqlite3 shell removes a carriage return
        # before a newline. Such a text is written as a blob in the database's encoding, and cast to a text.
        if _UNSAFE.search(value):
            encoded = value if encoding == "UTF-8" else value.decode().encode(encoding)
            return b"CAST(X'%s' AS TEXT)" % encoded.hex().encode()
        return b"'%s'" % value.replace(b"'", b"''")

    return {
        type(None): lambda _: b"NULL",
        int: b"%d".__mod__,
        float: real_literal,
        Text: text_literal,
        bytes: lambda value: b"X'%s'" % value.hex().encode(),
    }


def real_literal(value: float) -> bytes:
    """Return an expression that SQLite reads as exactly this number.

    SQLite's own parser is exact only for some decimals, so there are four forms:

    - `2.25`: multiples of a quarter up to 2^50 have few decimals, and are read exactly.
    - `0.10000000000000001`: 17 digits are read exactly unless the number is very large or very small.
    - `1e999`: SQLite has no literal for infinity; a number beyond its range becomes infinite.
    - `(6004799503160661*1.0/4611686018427387904/…)`: all other numbers as a whole number times or divided by
      powers of two. Every factor is a whole number that SQLite reads exactly, and multiplying by a power of
      two does not round.
    """
    size = abs(value)
    if size < 2**50 and (4 * value).is_integer():
        return b"%r" % value
    if _MIN_DECIMAL < size < _MAX_DECIMAL:
        return b"%#.17g" % value
    if math.isinf(value):
        return b"1e999" if value > 0 else b"-1e999"
    return product_literal(value)


def product_literal(value: float) -> bytes:
    """Return a finite number as a whole number times or divided by powers of two.

    A float is fraction * 2^exponent, and its fraction has 53 bits: fraction * 2^53 is a whole number. A power
    of two up to 2^62 fits into SQLite's integers, so a large exponent is divided into several of them.
    """
    fraction, exponent = math.frexp(value)
    expression, exponent = b"%d*1.0" % int(fraction * 2**53), exponent - 53
    operator = b"*" if exponent > 0 else b"/"
    for power in range(abs(exponent), 0, -62):
        expression += operator + b"%d" % 2 ** min(power, 62)
    return b"(%s)" % expression
