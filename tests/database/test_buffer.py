from collector.database.buffer import Batch, Buffer, Retention, clear_references, leave_out_tables
from collector.database.documented import LOGS, METADATA, METRICS
from collector.schema import Row, SqlValue


def sample(number: int) -> Row:
    return METRICS.row({"timestamp": number})


def samples(buffer: Buffer) -> list[SqlValue]:
    batches = buffer.drain()
    kept = [row[-1] for batch in batches if batch.retention is Retention.DROPPABLE for row in batch.rows]
    buffer.put_back(batches)
    return kept


def test_batches_are_drained_in_the_order_of_their_arrival() -> None:
    buffer = Buffer()
    buffer.add([METRICS.insert(sample(1))], Retention.DROPPABLE)
    buffer.add(
        [LOGS.insert(*[("info", "x", None, 1)]), METADATA.replace(("k", "1", 1))], Retention.REREADABLE
    )
    buffer.add([METRICS.insert(sample(2))], Retention.DROPPABLE)
    assert [batch.statement.split()[3] for batch in buffer.drain() if "REPLACE" not in batch.statement]
    assert buffer.drain() == []


def test_beyond_the_capacity_the_oldest_samples_are_dropped_and_counted() -> None:
    buffer = Buffer(sample_capacity=3)
    for number in range(5):
        buffer.add([METRICS.insert(sample(number))], Retention.DROPPABLE)
    assert samples(buffer) == [2, 3, 4]
    assert buffer.dropped_samples == 2


def test_of_a_batch_larger_than_the_capacity_the_newest_rows_stay() -> None:
    buffer = Buffer(sample_capacity=3)
    buffer.add([METRICS.insert(*(sample(number) for number in range(10)))], Retention.DROPPABLE)
    assert samples(buffer) == [7, 8, 9]
    assert buffer.dropped_samples == 7


def test_log_lines_are_never_dropped_and_use_up_the_room() -> None:
    buffer = Buffer(sample_capacity=1, line_capacity=4)
    buffer.add([LOGS.insert(*[("info", str(n), None, n) for n in range(6)])], Retention.KEPT)
    for number in range(3):
        buffer.add([METRICS.insert(sample(number))], Retention.DROPPABLE)
    assert buffer.room_for_lines == 0
    assert sum(len(batch.rows) for batch in buffer.drain() if batch.retention is not Retention.DROPPABLE) == 6


def test_batches_that_are_put_back_precede_newer_ones_and_are_counted_again() -> None:
    buffer = Buffer(sample_capacity=3)
    buffer.add([METRICS.insert(*(sample(number) for number in (1, 2)))], Retention.DROPPABLE)
    drained = buffer.drain()
    buffer.add([METRICS.insert(*(sample(number) for number in (3, 4)))], Retention.DROPPABLE)
    buffer.put_back(drained)
    assert samples(buffer) == [2, 3, 4]
    assert buffer.waiting == 3
    assert buffer.dropped_samples == 1


def kept(statement: str, *rows: Row) -> Batch:
    return Batch(statement, list(rows), Retention.KEPT, 5)


def test_references_are_cleared_in_the_statements_that_have_them_and_nowhere_else() -> None:
    batches = [
        kept("INSERT INTO a VALUES (?, ?, ?)", (1, 2, 3), (4, 5, 6)),
        kept("INSERT INTO b VALUES (?)", (7,)),
    ]
    cleared = clear_references(batches, {"INSERT INTO a VALUES (?, ?, ?)": (0, 2)})
    assert [batch.rows for batch in cleared] == [[(None, 2, None), (None, 5, None)], [(7,)]]
    assert batches[0].rows == [(1, 2, 3), (4, 5, 6)]
    assert {(batch.retention, batch.size_bytes) for batch in cleared} == {(Retention.KEPT, 5)}


def test_tables_are_left_out_whatever_their_statement() -> None:
    left_out = [
        "INSERT INTO runs (a) VALUES (?)",
        "INSERT OR REPLACE INTO runs VALUES (?)",
        "REPLACE INTO runs VALUES (?)",
        'UPDATE "runs" SET a = ?',
        "UPDATE OR IGNORE runs SET a = ?",
        "delete from runs WHERE a = ?",
    ]
    remaining = [
        "INSERT INTO server_runs VALUES (?)",
        "UPDATE models SET runs = ?",
        "INSERT INTO runs_2 VALUES (?)",
    ]
    batches = [kept(statement, (1,)) for statement in (*left_out, *remaining)]
    assert [batch.statement for batch in leave_out_tables(batches, ["runs"])] == remaining
