"""Every column of every table has a kind that fits its declaration and its name."""

import typing

import pytest

from collector.catalog import TABLES
from collector.schema import Column, Kind, Table

COLUMNS = [(table, column) for table in TABLES for column in table.columns]
NUMERIC_KINDS = ("gauge", "counter", "maximum", "bitmask", "time")
TIMES_WITHOUT_A_SUFFIX = ("timestamp", "since", "last_success")
STATES = ("state", "previous_state", "performance_state", "status")
UNITS_OF_GAUGES = ("_usage", "_mb", "_percent", "_per_second", "_celsius", "_watts", "_mhz", "_bytes", "_ms")


def sql_type(column: Column) -> str:
    return column.declaration.split()[0]


def is_sampled(table: Table) -> bool:
    """Whether the table is a time series: it has a timestamp and an index on it."""
    has_timestamp = any(column.name == "timestamp" for column in table.columns)
    return has_timestamp and any(index.columns.startswith("timestamp") for index in table.indexes)


each_column = pytest.mark.parametrize(
    ("table", "column"), COLUMNS, ids=[f"{table.name}.{column.name}" for table, column in COLUMNS]
)


@each_column
def test_the_kind_of_a_column_fits_its_declaration(table: Table, column: Column) -> None:
    assert column.kind in typing.get_args(Kind)
    if column.kind in NUMERIC_KINDS:
        assert sql_type(column) in ("INTEGER", "REAL"), table.name
    if column.kind == "bitmask":
        assert sql_type(column) == "INTEGER"
    if "PRIMARY KEY" in column.declaration:
        assert column.kind == "key"


@each_column
def test_the_kind_of_a_column_fits_its_name(table: Table, column: Column) -> None:
    is_named_like_a_time = column.name.endswith("_at") or column.name in TIMES_WITHOUT_A_SUFFIX
    if column.kind == "time":
        assert is_named_like_a_time
    elif is_named_like_a_time:
        assert sql_type(column) == "TEXT"  # model_files.found_at is a path
    if column.name in STATES:
        assert column.kind == "state"
    if column.name.endswith("_id"):
        assert column.kind in ("key", "label")
    if column.name.endswith(UNITS_OF_GAUGES):
        assert column.kind == "gauge"
    if column.name.endswith("_max"):
        assert column.kind == "maximum"
    if column.name.endswith("_total"):  # metrics.gpu_memory_total is not a number of events
        assert column.kind == ("gauge" if table.name == "metrics" else "counter")


def test_the_time_of_a_time_series_is_its_timestamp() -> None:
    sampled = [table for table in TABLES if is_sampled(table)]
    names = {table.name for table in sampled}
    assert names >= {"metrics", "host_metrics", "gpu_metrics", "llama_metrics", "model_events", "logs"}
    for table in sampled:
        first, *further = [c.name for c in table.columns if c.kind == "time"]
        assert first == "timestamp", table.name
        # Requests last for a while; the time of an event is known to the millisecond where a log tells it.
        assert not further or table.name in ("requests", "model_events")


def test_the_columns_of_a_table_have_different_names() -> None:
    for table in TABLES:
        names = [column.name.lower() for column in table.columns]
        assert len(names) == len(set(names)), table.name
