"""The metadata repository."""

import time
from typing import Any

from collector.database.documented import METADATA
from collector.database.repositories.base import Repository, decode_json, encode_json


class MetadataRepository(Repository):
    """Any other value, by key, as JSON."""

    table = METADATA

    def get(self, key: str, default: object = None) -> Any:
        """Return the value of this key, or the default.

        Raises:
            DatabaseError: the stored text is not JSON.
        """
        rows = self._database.query("SELECT value FROM metadata WHERE key = ?", (key,))
        return decode_json(self.table, key, rows[0]["value"]) if rows else default

    def set(self, key: str, value: object) -> None:
        """Store a value under a key, with the current time.

        Raises:
            ValueNotStorable: the key is no text, or the value is not JSON.
        """
        row = (key, encode_json(self.table, value), int(time.time()))
        with self._write(dict(zip(METADATA.written_columns, row, strict=True))) as connection:
            connection.execute(METADATA.replace_statement, row)
