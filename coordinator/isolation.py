"""Isolation levels, and what a SERIALIZABLE transaction remembers of its reads.

READ UNCOMMITTED is READ COMMITTED, as in PostgreSQL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from shardb import limits
from shardb.errors import SqlError
from shardb.rpc.messages import Span

if TYPE_CHECKING:
    from coordinator.catalog import Catalog
    from shardb.meta.descriptors import Range

READ_COMMITTED: Final = "read committed"
REPEATABLE_READ: Final = "repeatable read"
SERIALIZABLE: Final = "serializable"
SNAPSHOT_LEVELS: Final = frozenset({REPEATABLE_READ, SERIALIZABLE})


def in_read_only(command: str) -> SqlError:
    """25006 in PostgreSQL's words."""
    return SqlError("25006", f"cannot execute {command} in a read-only transaction")


class Spans:
    """Key intervals by table. Too many of one table become fewer that cover them."""

    def __init__(self) -> None:
        self._intervals: dict[int, list[tuple[bytes, bytes]]] = {}

    def add_keys(self, table_id: int, keys: list[bytes]) -> None:
        """Rows read by key, whether they were there or not."""
        for key in keys:
            self.add(table_id, key, key + b"\0")

    def add(self, table_id: int, low: bytes, high: bytes) -> None:
        """`[low, high)`; an empty `high` is "to the last key"."""
        found = self._intervals.setdefault(table_id, [])
        found.append((low, high))
        if len(found) > limits.SPANS_PER_TABLE_MAX:
            merged = union(found)
            if len(merged) > limits.SPANS_PER_TABLE_MAX // 2:
                merged = [(merged[0][0], merged[-1][1])]
            self._intervals[table_id] = merged

    def by_range(self, catalog: Catalog) -> dict[int, tuple[Range, tuple[Span, ...]]]:
        """The spans of each range by its id, cut at its bounds."""
        found: dict[int, tuple[Range, list[Span]]] = {}
        for table_id, intervals in self._intervals.items():
            table = catalog.table(table_id)
            for low, high in union(intervals):
                for item in catalog.ranges_for(table.group_id, low, high):
                    start = max(low, item.start)
                    end = min(high, item.end) if high and item.end else high or item.end
                    spans = found.setdefault(item.id, (item, []))[1]
                    spans.append(Span(table_id, start, end))
        return {range_id: (item, tuple(spans)) for range_id, (item, spans) in found.items()}


def union(intervals: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Disjoint intervals in order that cover the same keys."""
    out: list[tuple[bytes, bytes]] = []
    for low, high in sorted(intervals):
        if out and (not out[-1][1] or low <= out[-1][1]):
            last = out[-1]
            out[-1] = last[0], b"" if not high or not last[1] else max(high, last[1])
        else:
            out.append((low, high))
    return out
