from collector.database.buffer import Buffer
from collector.database.documented import LOGS, METADATA, METRICS
from collector.table import Row, SqlValue


def sample(number: int) -> Row:
    return METRICS.row({"timestamp": number})


def samples(buffer: Buffer) -> list[SqlValue]:
    batches = buffer.take()
    kept = [row[-1] for batch in batches if batch.droppable for row in batch.rows]
    buffer.put_back(batches)
    return kept


def test_batches_come_out_in_the_order_of_their_arrival() -> None:
    buffer = Buffer()
    buffer.add_samples([(METRICS, sample(1))])
    buffer.add_lines(LOGS, [("info", "x", None, 1)], (METADATA, ("k", "1", 1)))
    buffer.add_samples([(METRICS, sample(2))])
    assert [batch.statement.split()[3] for batch in buffer.take() if "REPLACE" not in batch.statement]
    assert buffer.take() == []


def test_beyond_the_bound_the_oldest_samples_go_and_are_counted() -> None:
    buffer = Buffer(sample_capacity=3)
    for number in range(5):
        buffer.add_samples([(METRICS, sample(number))])
    assert samples(buffer) == [2, 3, 4]
    assert buffer.dropped_samples == 2


def test_a_batch_larger_than_the_bound_keeps_its_newest_rows() -> None:
    buffer = Buffer(sample_capacity=3)
    buffer.add_samples((METRICS, sample(number)) for number in range(10))
    assert samples(buffer) == [7, 8, 9]
    assert buffer.dropped_samples == 7


def test_log_lines_are_never_dropped_and_tell_when_there_is_no_room() -> None:
    buffer = Buffer(sample_capacity=1, line_capacity=4)
    buffer.add_lines(LOGS, [("info", str(n), None, n) for n in range(6)])
    for number in range(3):
        buffer.add_samples([(METRICS, sample(number))])
    assert buffer.room_for_lines == 0
    assert sum(len(batch.rows) for batch in buffer.take() if not batch.droppable) == 6


def test_what_is_put_back_stands_before_what_came_since_and_counts_again() -> None:
    buffer = Buffer(sample_capacity=3)
    buffer.add_samples((METRICS, sample(number)) for number in (1, 2))
    taken = buffer.take()
    buffer.add_samples((METRICS, sample(number)) for number in (3, 4))
    buffer.put_back(taken)
    assert samples(buffer) == [2, 3, 4]
    assert buffer.waiting == 3
    assert buffer.dropped_samples == 1
