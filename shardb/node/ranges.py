"""One range on this node: its bounds, tables and tablets, and its transaction participant.

It is the participant's host: records go to the engine's log, outcomes to the tablets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardb._core.memload import put_framed
from shardb._core.memtable import MemTable
from shardb.env import Rng
from shardb.errors import StorageError
from shardb.meta.descriptors import Range, Table
from shardb.node.relayout import Relayout, layout_of
from shardb.storage.engine import Engine
from shardb.storage.tablet import Tablet
from shardb.txn import records
from shardb.txn.locks import LockTable
from shardb.txn.participant import Done, Participant
from shardb.txn.records import Section
from shardb.txn.state import KeySet

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class MemKeySet:
    """A set of keys as a memtable of deletions."""

    __slots__ = ("_table",)

    def __init__(self) -> None:
        self._table = MemTable()

    @property
    def entries(self) -> int:
        return self._table.entries

    def newest(self, key: bytes) -> tuple[bytes | None, int] | None:
        return self._table.newest(key)

    def put_framed(self, keys: bytes, rows: bytes | None, count: int, commit_ts: int) -> None:
        put_framed(self._table, keys, rows, count, commit_ts)


class LocalRange:
    """A range and what this node holds of it."""

    def __init__(
        self,
        descriptor: Range,
        engine: Engine,
        locks: LockTable,
        rng: Rng,
    ) -> None:
        self.id = descriptor.id
        self.low = descriptor.start
        self.high = descriptor.end
        self.epoch = descriptor.epoch
        self.tables: dict[int, Table] = {}
        self.tablets: dict[int, Tablet] = {}
        self._relayouts: dict[int, Relayout] = {}  # of tables that had another layout
        self._engine = engine
        self._rng = rng
        self.participant = Participant(descriptor.id, self, locks)

    def install(self, table: Table) -> None:
        """Makes a table's tablet, or learns its newer descriptor and gives its rows that layout."""
        before = self.tables.get(table.id)
        self.tables[table.id] = table
        tablet = self.tablets.get(table.id)
        if tablet is None:
            self.tablets[table.id] = self._engine.install(self.id, table.id, layout_of(table))
        elif before is not None and before.schema_version != table.schema_version:
            relayout = self._relayouts[table.id] = Relayout(table)
            tablet.memtable = relayout.memtable(tablet.memtable)
            tablet.layout = layout_of(table)

    def drop(self, table_id: int) -> None:
        """Forgets a table's tablet."""
        self.tables.pop(table_id, None)
        self.tablets.pop(table_id, None)
        self._relayouts.pop(table_id, None)
        self._engine.drop(self.id, table_id)

    def holds(self, key: bytes) -> bool:
        """True if the key is within the range's bounds."""
        return key >= self.low and (not self.high or key < self.high)

    # --- the participant's host

    def persist(self, kind: int, payload: bytes, done: Done) -> None:
        # Nobody waits for the record of an outcome that every participant can find out.
        lazy = kind == records.DECIDE
        try:
            self._engine.append(self.id, kind, payload, done, self.epoch, lazy)
        except StorageError as error:  # too long for a record: a failure like any other
            done(error)

    def apply(self, table_id: int, overlay: Mapping[bytes, bytes | None], commit_ts: int) -> None:
        tablet = self.tablets.get(table_id)
        if tablet is None:
            return  # dropped meanwhile
        relayout = self._relayouts.get(table_id)
        writes: Iterable[tuple[bytes, bytes | None]] = overlay.items()
        if relayout is not None:
            writes = [(key, None if row is None else relayout.row(row)) for key, row in writes]
        tablet.apply(writes, commit_ts)

    def apply_section(self, section: Section, commit_ts: int) -> None:
        tablet = self.tablets.get(section.table_id)
        if tablet is None:
            return
        rows = section.rows
        relayout = self._relayouts.get(section.table_id)
        if relayout is not None and rows is not None:
            rows = relayout.items(rows, section.count)
        tablet.apply_framed(section.keys, rows, section.count, commit_ts)

    def new_key_set(self) -> KeySet:
        return MemKeySet()

    def new_state_id(self) -> int:
        return int.from_bytes(self._rng.token(8), "little") >> 1 | 1
