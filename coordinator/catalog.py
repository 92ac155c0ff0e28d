"""An immutable snapshot of the cluster's tables and ranges, as one metadata revision has them.

Plans are made for a snapshot's `version`; a changed descriptor makes a new snapshot. Look-ups on
the hot path are a dictionary access and a bisection.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import msgspec

from shardb.errors import SqlError
from shardb.meta.descriptors import Group, Node, Range, Table
from shardb.txn import advisory

SEARCH_PATH = ("public",)


@dataclass(frozen=True, slots=True)
class RangeMap:
    """The ranges of one group in key order. Invariant: they cover the key space without a gap."""

    starts: tuple[bytes, ...]
    ranges: tuple[Range, ...]

    def find(self, key: bytes) -> Range:
        """The range that holds `key`."""
        return self.ranges[bisect_right(self.starts, key) - 1]

    def meet(self, low: bytes, high: bytes) -> tuple[Range, ...]:
        """The ranges that meet `[low, high)`; an empty `high` means "to the last key"."""
        first = bisect_right(self.starts, low) - 1
        found = []
        for item in self.ranges[max(first, 0) :]:
            if high and item.start >= high:
                break
            found.append(item)
        return tuple(found)


@dataclass(frozen=True)
class Catalog:
    """Tables by id and by (schema, name), ranges by group, and nodes; `version` is the revision."""

    version: int
    tables: Mapping[int, Table]
    groups: Mapping[int, Group]
    range_maps: Mapping[int, RangeMap]
    nodes: Mapping[int, Node]
    names: Mapping[tuple[str, str], Table] = field(default_factory=dict)

    @classmethod
    def build(
        cls,
        version: int,
        tables: Iterable[Table] = (),
        groups: Iterable[Group] = (),
        ranges: Iterable[Range] = (),
        nodes: Iterable[Node] = (),
    ) -> Catalog:
        """A snapshot of the given descriptors."""
        by_id = {table.id: table for table in tables}
        by_group: dict[int, list[Range]] = {}
        for item in ranges:
            by_group.setdefault(item.group_id, []).append(item)
        maps = {}
        for group_id, members in by_group.items():
            members.sort(key=lambda item: item.start)
            maps[group_id] = RangeMap(tuple(item.start for item in members), tuple(members))
        return cls(
            version=version,
            tables=by_id,
            groups={group.id: group for group in groups},
            range_maps=maps,
            nodes={node.id: node for node in nodes},
            names={
                (table.schema, table.name): table
                for table in by_id.values()
                if table.schema != advisory.SCHEMA
            },
        )

    @classmethod
    def from_store_items(cls, items: Iterable[tuple[str, bytes]], version: int) -> Catalog:
        """A snapshot of store keys and values; keys other than descriptors' are skipped.

        Keys are `tables/<id>`, `groups/<id>`, `ranges/<id>` and `nodes/<id>`, values JSON.
        """
        tables: list[Table] = []
        groups: list[Group] = []
        ranges: list[Range] = []
        nodes: list[Node] = []
        for key, value in items:
            kind, _, rest = key.partition("/")
            if "/" in rest or not rest:
                continue
            if kind == "tables":
                tables.append(msgspec.json.decode(value, type=Table))
            elif kind == "groups":
                groups.append(msgspec.json.decode(value, type=Group))
            elif kind == "ranges":
                ranges.append(msgspec.json.decode(value, type=Range))
            elif kind == "nodes":
                nodes.append(msgspec.json.decode(value, type=Node))
        return cls.build(version, tables, groups, ranges, nodes)

    def shown(self) -> Catalog:
        """The same without the tables that are not for clients to see."""
        tables = {k: table for k, table in self.tables.items() if table.schema != advisory.SCHEMA}
        return replace(self, tables=tables)

    def table(self, table_id: int) -> Table:
        """The table with this id; 42P01 if it has been dropped since."""
        found = self.tables.get(table_id)
        if found is None:
            raise SqlError("42P01", f"relation with OID {table_id} does not exist")
        return found

    def lookup(self, name: str, schema: str = "") -> Table | None:
        """The table called `name` in `schema`, or on the search path."""
        if schema:
            return self.names.get((schema, name))
        for path in SEARCH_PATH:
            found = self.names.get((path, name))
            if found is not None:
                return found
        return None

    def find_range(self, group_id: int, key: bytes) -> Range:
        """The range of the group that holds `key`."""
        return self.range_maps[group_id].find(key)

    def ranges_for(self, group_id: int, low: bytes = b"", high: bytes = b"") -> tuple[Range, ...]:
        """The ranges of the group that meet `[low, high)`, in key order; empty `high` is open."""
        return self.range_maps[group_id].meet(low, high)
