"""One range on this node: its bounds, tables and tablets, and its transaction participant.

It is the participant's host: records go to the engine's log, outcomes to the tablets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardb._core.changes import changed_since
from shardb._core.runs import Runs
from shardb.env import Rng
from shardb.errors import StorageError
from shardb.meta.descriptors import Range, Table
from shardb.node.bulk import Bulk, decode_links
from shardb.node.retention import Retention
from shardb.storage.engine import Engine
from shardb.storage.ingest import Ingest
from shardb.storage.schema import TabletSchema
from shardb.storage.segmentformat import SegmentColumn, SegmentMeta
from shardb.storage.tablet import Tablet
from shardb.txn import records
from shardb.txn.decisions import Done
from shardb.txn.locks import LockTable
from shardb.txn.participant import Participant
from shardb.txn.records import Section
from shardb.txn.state import State

if TYPE_CHECKING:
    from collections.abc import Mapping


def schema_of(table: Table) -> TabletSchema:
    """What storage has to know of a table."""
    columns = [
        SegmentColumn(column.id, column.name, column.type_code, column.typmod)
        for column in table.columns
    ]
    names = {column.id: column.name for column in table.columns}
    # Rows are read as an earlier version has them, too: until a change is published, if it ever is.
    missing = dict(pair for layout in (*table.history, table.layout) for pair in layout.missing)
    earlier = {
        layout.schema_version: [
            SegmentColumn(column_id, names.get(column_id, ""), type_code, typmod)
            for column_id, type_code, typmod in layout.columns
        ]
        for layout in table.history
    }
    codec = table.options.get("compression", "none")
    return TabletSchema(
        table.schema_version, columns, missing, earlier, "" if codec == "none" else codec
    )


class LocalRange:
    """A range and what this node holds of it."""

    def __init__(
        self,
        descriptor: Range,
        engine: Engine,
        locks: LockTable,
        rng: Rng,
    ) -> None:
        self.descriptor = descriptor
        self.id = descriptor.id
        self.low = descriptor.start
        self.high = descriptor.end
        self.epoch = descriptor.epoch
        self.tables: dict[int, Table] = {}
        self.tablets: dict[int, Tablet] = {}
        self.applying = 0  # the index of the record whose writes are being carried out
        self.retention = Retention()
        self.engine = engine
        self._rng = rng
        self.participant = Participant(descriptor.id, self, locks)
        self.participant.txn_max_bytes = engine.budget.transaction_bytes

    def install(self, table: Table) -> None:
        """Makes a table's tablet, or learns its newer descriptor."""
        known = self.tables.get(table.id)
        if known is not None and known.version > table.version:
            return  # replayed: the manifest knew better
        descriptor = records.encode_install(self.descriptor, table)
        schema = schema_of(table)
        self.tablets[table.id] = self.engine.install(self.id, table.id, schema, descriptor)
        self.tables[table.id] = table
        for meta in self.tablets[table.id].metas:
            self.participant.raise_to(meta.max_ts)

    def drop(self, table_id: int) -> None:
        """Forgets a table's tablet."""
        self.tables.pop(table_id, None)
        self.tablets.pop(table_id, None)
        self.engine.drop(self.id, table_id)

    def holds(self, key: bytes) -> bool:
        """True if the key is within the range's bounds."""
        return key >= self.low and (not self.high or key < self.high)

    def runs(self, table_id: int, version: int, state: State | None) -> Runs:
        """A table's rows as a version of it has them, with the bulk writes of a transaction."""
        tablet = self.tablets[table_id]
        bulk = None if state is None else state.bulk.get(table_id)
        if bulk is None:
            return tablet.runs(version)
        assert isinstance(bulk, Bulk)
        return tablet.view(bulk.runs(version), version)

    def new_bulk(self, table_id: int) -> Bulk:
        """For the large inserts of a transaction into a table."""
        return Bulk(Ingest(self.engine, self.tablets[table_id]))

    def note_record(self, kind: int, payload: bytes, index: int) -> None:
        """A record is durable, or replayed."""
        now = self.participant.known_issued
        if kind != records.COMMIT or now > self.retention.due:
            self.retention.note(kind, payload, index, now)

    # --- the participant's host

    def persist(self, kind: int, payload: bytes, done: Done, lazy: bool = False) -> None:
        index = 0

        def durable(error: StorageError | None) -> None:
            if error is None:
                self.applying = index
                self.note_record(kind, payload, index)
            done(error)

        try:
            index = self.engine.append(self.id, kind, payload, durable, self.epoch, lazy)
        except StorageError as error:  # too long for a record: a failure like any other
            done(error)
            return
        self.applying = index

    def apply(self, table_id: int, overlay: Mapping[bytes, bytes | None], commit_ts: int) -> None:
        tablet = self.tablets.get(table_id)
        if tablet is None or self.applying <= tablet.settled_index:
            return  # dropped meanwhile, or replayed and in a segment already
        tablet.apply(overlay.items(), commit_ts)
        self.engine.written(tablet)

    def apply_section(self, section: Section, commit_ts: int) -> None:
        links = None if section.links is None else self._links(section.links)
        tablet = self.tablets.get(section.table_id)
        if tablet is None or self.applying <= tablet.settled_index:
            return
        if links is not None:
            self.engine.link(tablet, links, commit_ts, self.applying)
            return
        tablet.apply_framed(section.keys, section.rows, section.count, commit_ts)
        self.engine.written(tablet)

    def changed_since(self, table_id: int, low: bytes, high: bytes, ts: int) -> bool:
        tablet = self.tablets.get(table_id)
        if tablet is None:
            return True  # dropped meanwhile
        return ts < tablet.gc_ts or changed_since(tablet.runs(), low, high, ts)

    def restore_bulk(self, section: Section) -> Bulk | None:
        assert section.links is not None
        metas = self._links(section.links)
        tablet = self.tablets.get(section.table_id)
        if tablet is None:
            return None
        return Bulk(Ingest.restore(self.engine, tablet, metas), large=True)

    def _links(self, links: bytes) -> tuple[SegmentMeta, ...]:
        metas = decode_links(links)
        self.engine.skip_numbers(metas)
        return metas

    def new_state_id(self) -> int:
        return int.from_bytes(self._rng.token(8), "little") >> 1 | 1
