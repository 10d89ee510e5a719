"""The logs repository."""

from collector.database.documented import LOGS
from collector.database.repositories.base import Record, Repository


class LogsRepository(Repository):
    """Log records over time."""

    table = LOGS

    def get_all(self, limit: int = 100) -> list[Record]:
        """Return the newest records, newest first; records of the same second by descending id."""
        return self._newest(limit)

    def add(self, level: str, message: str, source: str | None = "server") -> None:
        """Insert one record with the current time.

        Args:
            level: debug, info, warn, error or critical.
            message: the text.
            source: the component it comes from.

        Raises:
            ValueNotStorable: a value does not fit its column.
        """
        values = {"level": level, "message": message, "source": source}
        with self._write(values) as connection:
            connection.execute(
                "INSERT INTO logs (level, message, source) VALUES (?, ?, ?)", tuple(values.values())
            )

    def clear(self) -> int:
        """Delete all records and return their number."""
        with self._database.transaction() as connection:
            return connection.execute("DELETE FROM logs").rowcount
