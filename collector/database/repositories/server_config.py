"""The server_config repository."""

from collections.abc import Mapping
from pathlib import Path

from collector.database.documented import SERVER_CONFIG
from collector.database.repositories.base import Record, Repository, decode_json, encode_json
from collector.errors import DatabaseError

_KEY = "config"


class ConfigRepository(Repository):
    """The configuration that other programs keep for llama-server, as one JSON object."""

    table = SERVER_CONFIG

    def get(self) -> Record:
        """Return the saved configuration, completed with the documented defaults.

        Raises:
            DatabaseError: the stored text is not a JSON object.
        """
        rows = self._database.query("SELECT value FROM server_config WHERE key = ?", (_KEY,))
        saved = decode_json(self.table, _KEY, rows[0]["value"]) if rows else {}
        if not isinstance(saved, dict):
            raise DatabaseError(
                f"server_config.{_KEY} contains {saved!r:.80}, not a JSON object: save it again"
            )
        return default_server_config() | saved

    def save(self, config: Mapping[str, object]) -> None:
        """Store the complete configuration.

        Raises:
            ValueNotStorable: it is not JSON.
        """
        value = encode_json(self.table, dict(config))
        with self._write({"value": value}) as connection:
            connection.execute(
                "INSERT OR REPLACE INTO server_config (key, value) VALUES (?, ?)", (_KEY, value)
            )


def default_server_config() -> Record:
    """Return the documented default configuration for this user."""
    return {
        "serverPath": "/usr/local/bin/llama-server",
        "host": "localhost",
        "port": 8080,
        "baseModelsPath": str(Path.home() / "models"),
        "ctx_size": 2048,
        "batch_size": 512,
        "threads": 4,
        "llama_server_enabled": True,
        "llama_server_port": 8080,
        "llama_server_host": "0.0.0.0",  # noqa: S104 - a documented default of another program
        "llama_server_metrics": True,
    }
