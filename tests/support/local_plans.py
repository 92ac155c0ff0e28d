"""Carries out query plans in this process, without shards: scans read Arrow tables held here.

It shows that a plan means what its statement says, apart from how rows are stored and moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pyarrow as pa

from coordinator.catalog import Catalog
from coordinator.ddl import edits
from coordinator.plan.plans import QueryPlan, UtilityPlan
from coordinator.sql.catalog_tables import arrow_table
from coordinator.sql.compiler import Compiler
from coordinator.sql.literals import fill_parameters
from shardb.engine.fragments import FragmentEngine
from shardb.meta.descriptors import Group, Node, Range, Table
from shardb.types import arrow_type

KINDS = {"tables": Table, "groups": Group, "ranges": Range}


class LocalPlans:
    """Tables by name as Arrow, a catalog that DDL changes, and an engine."""

    def __init__(self) -> None:
        self.items: dict[str, bytes] = {}
        self.next_id = 16384
        self.rows: dict[int, pa.Table] = {}
        self.engine = FragmentEngine()
        self.nodes = [Node(1, "unix:/1"), Node(2, "unix:/2")]
        self.catalog = self._snapshot()

    def _snapshot(self) -> Catalog:
        found: dict[str, list[Any]] = {kind: [] for kind in KINDS}
        for key, value in self.items.items():
            kind = key.partition("/")[0]
            found[kind].append(msgspec.json.decode(value, type=KINDS[kind]))
        return Catalog.build(
            self.next_id, found["tables"], found["groups"], found["ranges"], self.nodes
        )

    def apply(self, edit: edits.Edit) -> None:
        """Applies a DDL edit to the catalog."""
        for key in edit.deletes:
            self.items.pop(key, None)
        self.items.update(edit.puts)
        self.next_id = edit.after_id
        self.catalog = self._snapshot()

    def create(self, statement: str) -> Table:
        """Runs CREATE TABLE."""
        plan = Compiler(self.catalog).compile(statement).plan
        assert isinstance(plan, UtilityPlan)
        edit = edits.create_table(plan.args[0], self.catalog, self.next_id)
        self.apply(edit)
        assert edit.table is not None
        return edit.table

    def fill(self, name: str, rows: pa.Table) -> None:
        """Gives a table its rows; columns in the table's order, cast to its types."""
        table = self.catalog.lookup(name)
        assert table is not None
        arrays = []
        for column, values in zip(table.columns, rows.columns, strict=False):
            wanted = arrow_type(column.type_code, column.typmod)
            if pa.types.is_decimal(wanted):
                values = values.cast(pa.decimal128(38, wanted.scale))
            values = values.cast(wanted)
            if column.type_code == 10 and column.typmod > 0:
                width = column.typmod - 4
                padded = [None if v is None else v.ljust(width) for v in values.to_pylist()]
                values = pa.chunked_array([pa.array(padded, pa.string())])
            arrays.append(values)
        if table.has_hidden_key:
            arrays.append(pa.array(range(rows.num_rows), pa.int64()))
        names = [f"c{at}" for at in range(len(arrays))]
        self.rows[table.id] = pa.table(arrays, names=names)

    def query(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query that is planned as one."""
        plan = Compiler(self.catalog).compile(statement).plan
        assert isinstance(plan, QueryPlan), plan
        return self.run(plan, values)

    def run(self, plan: QueryPlan, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query plan."""
        tables: dict[str, Any] = {
            name: arrow_table(name, self.catalog) for name in plan.catalog_tables
        }
        for stage in plan.scans:
            table = self.catalog.table(stage.table_id)
            rows = self.rows.get(stage.table_id)
            if rows is None:
                rows = pa.table(
                    {
                        f"c{at}": pa.array([], arrow_type(c.type_code, c.typmod))
                        for at, c in enumerate(table.columns)
                    }
                )
            rows = rows.select([f"c{at}" for at in stage.columns])
            if stage.filter:
                sql = "SELECT * FROM scan WHERE " + fill_parameters(stage.filter, values)
                rows = self.engine.run(sql, {"scan": rows}).read_all()
            tables[stage.alias] = rows
        found = self.engine.run(plan.sql, tables, values).read_all()
        assert found.num_columns == len(plan.columns)
        return (
            list(zip(*(column.to_pylist() for column in found.columns), strict=True))
            if (found.num_columns)
            else []
        )
