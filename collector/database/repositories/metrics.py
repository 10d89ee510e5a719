"""The metrics repository."""

from collections.abc import Mapping

from collector.database.deletion import delete_oldest
from collector.database.documented import METRICS
from collector.database.repositories.base import Record, Repository
from collector.schema import SqlValue

_FIELDS = tuple(name for name in METRICS.written_columns if name != "timestamp")
_SAVE = (
    f"INSERT INTO metrics ({', '.join(_FIELDS)}, timestamp) "  # noqa: S608 - names are our own
    f"VALUES ({', '.join('?' * len(_FIELDS))}, coalesce(?, strftime('%s', 'now')))"
)


class MetricsRepository(Repository):
    """Snapshots over time."""

    table = METRICS

    def save(self, metrics: Mapping[str, SqlValue]) -> None:
        """Insert one snapshot, with the current time unless it has a `timestamp`.

        A missing field is stored as 0, an explicit None as NULL, unknown fields are ignored.

        Raises:
            ValueNotStorable: a value does not fit its column.
        """
        row = (*(metrics.get(name, 0) for name in _FIELDS), metrics.get("timestamp"))
        with self._write(metrics) as connection:
            connection.execute(_SAVE, row)

    def get_history(self, limit: int = 100) -> list[Record]:
        """Return the newest snapshots, newest first; those of the same second by descending id."""
        return self._newest(limit)

    def get_latest(self) -> Record | None:
        """Return the newest snapshot, or None."""
        rows = self.get_history(1)
        return rows[0] if rows else None

    def prune(self, max_records: int = 10000) -> int:
        """Delete the oldest snapshots beyond `max_records`, in chunks, and return their number.

        Raises:
            ValueError: `max_records` is negative.
        """
        if max_records < 0:
            raise ValueError(f"max_records must not be negative: {max_records}")
        return delete_oldest(self._database, "metrics", max_records)
