"""Delete imported requests whose log is read later all the same, as it was written."""

from collector.database.repositories.base import Connected
from collector.logs.past.merging import TOLERANCE_SECONDS, same_request

BATCH_ROWS = 500
"""Rows that are compared in one transaction."""

_DUPLICATES = f"""SELECT imported.id FROM requests AS later JOIN requests AS imported
    ON {same_request("imported", lambda name: f"later.{name}")}
    WHERE later.id > ?1 AND later.id <= ?2 AND later.origin IS NULL AND imported.origin IS NOT NULL
    AND (imported.total_ms IS NOT NULL OR imported.ended_at IS NULL
         OR abs(imported.ended_at - later.ended_at) <= {TOLERANCE_SECONDS})"""  # noqa: S608 - our own names


class RequestDuplicates:
    """Compares rows that were read from a log with imported ones that were there before.

    Example: `import llama.log`, and then the collector is told to read that file and begins at its beginning.
    The row that was read from the log stays: its times are at least as good.

    Args:
        database: contains the table.
    """

    def __init__(self, database: Connected) -> None:
        self._database = database
        self._checked_id: int | None = None

    def run(self) -> int:
        """Compare the next rows, at most `BATCH_ROWS`; return how many imported rows were deleted.

        Raises:
            DatabaseBusy: another program holds a lock.
            DatabaseError: it cannot be read or written.
        """
        (ids,) = self._database.query(
            "SELECT (SELECT min(id) FROM requests WHERE origin IS NOT NULL) AS first_imported, "
            "(SELECT max(id) FROM requests) AS last"
        )
        if ids["first_imported"] is None:
            return 0
        begin = max(ids["first_imported"], self._checked_id or 0)
        end = min(ids["last"], begin + BATCH_ROWS)
        if begin == end:
            return 0
        with self._database.transaction() as connection:
            cursor = connection.execute(
                f"DELETE FROM requests WHERE id IN ({_DUPLICATES})",  # noqa: S608 - our own names
                (begin, end),
            )
        self._checked_id = end
        return cursor.rowcount
