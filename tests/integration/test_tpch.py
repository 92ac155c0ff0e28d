"""TPC-H at scale 0.01: tables over both shards, loaded by psql, answers equal to DuckDB's."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest

from bench.tpch import data, queries
from tests.support.cluster import Cluster

SCALE = 0.01
Row = tuple[Any, ...]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tpch")
    data.generate(directory, SCALE)
    return directory


@pytest.fixture(scope="module")
def loaded(cluster: Cluster, files: Path) -> Iterator[Cluster]:
    data.create(cluster, SCALE)
    for table in data.COLUMNS:
        data.load(cluster, files, table)
    yield cluster
    with cluster.connect() as connection:
        for table in data.COLUMNS:
            connection.execute(f"DROP TABLE {table}")


@pytest.fixture(scope="module")
def reference(files: Path) -> duckdb.DuckDBPyConnection:
    return data.reference(files)


def same(ours: object, theirs: object) -> bool:
    """Equal values; the averages and quotients of the two differ in their last digits only."""
    if isinstance(ours, str) and isinstance(theirs, str):
        return ours.rstrip() == theirs.rstrip()  # char(n) is padded here and not there
    if isinstance(ours, Decimal | float) and isinstance(theirs, Decimal | float | int):
        return abs(float(ours) - float(theirs)) <= 1e-9 * max(1.0, abs(float(theirs)))
    if isinstance(theirs, datetime.datetime) and not isinstance(ours, datetime.datetime):
        return ours == theirs.date()
    return ours == theirs


def assert_same_rows(ours: Sequence[Row], theirs: Sequence[Row]) -> None:
    assert len(ours) == len(theirs)
    for left, right in zip(ours, theirs, strict=True):
        assert len(left) == len(right)
        assert all(map(same, left, right)), (left, right)


@pytest.mark.parametrize("table", data.COLUMNS)
def test_every_row_is_there_on_both_sides_of_the_split(
    loaded: Cluster, reference: duckdb.DuckDBPyConnection, table: str
) -> None:
    column = data.KEYS[table].partition(",")[0]
    middle = data.split_point(table, SCALE)
    text = (
        f"SELECT count(*), count(CASE WHEN {column} < {middle} THEN 1 END), min({column}),"
        f" max({column}) FROM {table}"
    )
    with loaded.connect() as connection:
        ours = connection.execute(text).fetchall()
    assert_same_rows(ours, reference.execute(text).fetchall())
    total, below = ours[0][0], ours[0][1]
    assert 0 < below < total


@pytest.mark.parametrize("table", data.COLUMNS)
def test_what_was_loaded_reads_back(
    loaded: Cluster, reference: duckdb.DuckDBPyConnection, table: str
) -> None:
    text = f"SELECT * FROM {table} ORDER BY {data.KEYS[table]} LIMIT 500"
    with loaded.connect() as connection:
        assert_same_rows(connection.execute(text).fetchall(), reference.execute(text).fetchall())


@pytest.mark.parametrize("name", queries.QUERIES)
def test_query(loaded: Cluster, reference: duckdb.DuckDBPyConnection, name: str) -> None:
    text = queries.query(name, SCALE)
    with loaded.connect() as connection:
        ours = connection.execute(text).fetchall()
    theirs = reference.execute(text).fetchall()
    assert theirs
    assert_same_rows(ours, theirs)
