"""JSON in a `value` column."""

import json
from typing import Any

from collector.errors import DatabaseError, ValueNotStorable
from collector.table import Table


def encode_json(table: Table, value: object) -> str:
    """The value as JSON text that every JSON reader takes (no NaN, no infinity).

    Raises:
        ValueNotStorable: it cannot be written as JSON.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueNotStorable(table.name, "value", value, str(error)) from error


def decode_json(table: Table, key: str, text: str) -> Any:
    """The value that a row holds.

    Raises:
        DatabaseError: the text is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, TypeError) as error:
        raise DatabaseError(f"{table.name}.value of {key!r} is not JSON ({error}): set it anew") from error
