"""One table's rows in one range: a memtable that takes writes, frozen ones, and segments.

Everything belongs to the engine's thread, but for the `Runs` that are handed out: an immutable view
that any reader may keep, and a scan may draw from in another thread.

Invariants: `order` ranks memtables and segments, for each key the larger the newer; what is not yet
in the manifest is in `unsettled`, oldest first, and settles in that order, so that the log always
has what the manifest lacks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from shardb._core.frames import join_items, split_items
from shardb._core.memload import put_framed
from shardb._core.memtable import MemTable
from shardb._core.runs import Runs
from shardb._core.segment import Segment
from shardb._core.shadow import Shadows
from shardb.errors import StorageError
from shardb.storage.pieces import Piece, Run
from shardb.storage.schema import TabletSchema
from shardb.storage.segmentformat import SegmentIndex, SegmentMeta

Opener = Callable[[SegmentMeta], Segment]


class Frozen:
    """A memtable that takes no more writes.

    All of the range's log up to `index` is in it or in what is older.
    """

    __slots__ = ("index", "memtable", "order", "version")

    def __init__(self, memtable: MemTable, version: int, order: int, index: int) -> None:
        self.memtable = memtable
        self.version = version
        self.order = order
        self.index = index


class Linked:
    """Segments of a committed transaction that the manifest does not name yet; `index` as above."""

    __slots__ = ("index", "metas")

    def __init__(self, metas: Sequence[SegmentMeta], index: int) -> None:
        self.metas = tuple(metas)
        self.index = index


class Tablet:
    """Versions of rows by key. A key's versions have ascending timestamps.

    `settled_index`: all of the range's log up to it is in segments that the manifest names.
    `gc_ts`: versions that only snapshots below it need may be gone. `version` is the schema version
    of the memtable's rows: that of the newest row written, for a newer schema that is only known
    may not come to be.
    """

    def __init__(
        self,
        range_id: int,
        table_id: int,
        schema: TabletSchema,
        order: int,
        opener: Opener,
        freeze: Callable[[Tablet], None],
        shadows: Shadows,
        metas: Iterable[SegmentMeta] = (),
        settled_index: int = 0,
        gc_ts: int = 0,
    ) -> None:
        self.range_id = range_id
        self.table_id = table_id
        self.schema = schema
        self.settled_index = settled_index
        self.gc_ts = gc_ts
        self.memtable = MemTable()
        self.version = 0  # not known: no row was written since the start
        self.order = order  # of the active memtable
        self.unsettled: deque[Frozen | Linked] = deque()
        self.metas = sorted(metas, key=_order, reverse=True)  # of all segments, newest first
        self.dropped = False
        self.since_log_bytes = 0  # how much log there was when the memtable was begun, 0: not known
        self.shadows = shadows  # what scans learn of rows that newer runs hide
        self._opener = opener
        self._freeze = freeze
        self._open: dict[int, Segment] = {}
        self._runs: dict[int, Runs] = {}
        self._shape: list[list[SegmentMeta]] | None = None
        self._version_bytes = b"\0\0"

    # --- reading

    def runs(self, version: int = 0) -> Runs:
        """The rows as a version of the table has them; a view that stays as it is.

        By default any version, for those who only ask whether rows are there. StorageError XX001
        if the tablet cannot be read.
        """
        found = self._runs.get(version)
        if found is None:
            wanted = version or self.memtable_version
            found = Runs(self.schema.layout(wanted), self._list(wanted))
            self._runs[version] = found
        return found

    def newest(self, key: bytes, version: int = 0) -> tuple[bytes | None, int] | None:
        """(row, or None if deleted; its commit_ts) of the newest version, or None."""
        runs = self._runs.get(version)
        if runs is None:
            runs = self.runs(version)
        return runs.newest(key)

    def view(self, own: Sequence[Run], version: int = 0) -> Runs:
        """The same with a transaction's own runs, newest first, before all others."""
        base = self.runs(version)
        return Runs(base.layout, (*own, *base.runs))

    def segment(self, meta: SegmentMeta) -> Segment:
        """An open segment of the tablet."""
        found = self._open.get(meta.number)
        if found is None:
            found = self._open[meta.number] = self._opener(meta)
        return found

    def opened(self, segments: Iterable[Segment]) -> None:
        """These have been opened ahead of need; those that have gone meanwhile are passed over."""
        numbers = {meta.number for meta in self.metas}
        for segment in segments:
            meta = segment.meta
            assert isinstance(meta, SegmentMeta)
            if meta.number in numbers:
                self._open.setdefault(meta.number, segment)

    def adopt(self, segments: Iterable[Segment]) -> None:
        """A transaction's segments, now linked, which it had open."""
        metas = {meta.number: meta for meta in self.metas}
        for segment in segments:
            assert isinstance(segment.meta, SegmentMeta)
            meta = metas.get(segment.meta.number)
            if meta is not None:
                self._open.setdefault(meta.number, segment.linked(meta))

    @staticmethod
    def version_of(segment: Segment) -> int:
        """The schema version that a segment's rows are of."""
        assert isinstance(segment.index, SegmentIndex)
        return segment.index.schema_version

    def piece(self, segment: Segment, version: int) -> Piece:
        """A segment with the way of its rows to a version."""
        index = segment.index
        assert isinstance(index, SegmentIndex)
        return segment, self.schema.map_from(segment.layout, index.columns, version)

    def _list(self, version: int) -> list[Run]:
        """All runs, newest first: memtables and groups of disjoint segments."""
        schema = self.schema
        runs: list[Run] = [(False, [(self.memtable, schema.map(self.memtable_version, version))])]
        frozen = [item for item in reversed(self.unsettled) if isinstance(item, Frozen)]
        metas = list(self.metas)
        at = 0
        for item in frozen:
            newer = at
            while newer < len(metas) and metas[newer].order > item.order:
                newer += 1
            runs += self._segment_runs(metas[at:newer], version)
            at = newer
            runs.append((False, [(item.memtable, schema.map(item.version, version))]))
        runs += self._segment_runs(metas[at:], version)
        return runs

    def _segment_runs(self, metas: Sequence[SegmentMeta], version: int) -> list[Run]:
        return [
            (False, [self.piece(self.segment(meta), version) for meta in group])
            for group in disjoint_runs(metas)
        ]

    # --- writing

    def apply(self, writes: Iterable[tuple[bytes, bytes | None]], commit_ts: int) -> None:
        """Makes a committed transaction's writes visible from `commit_ts` on; None deletes."""
        put = self.memtable.put
        version = self._version_bytes
        for key, row in writes:
            if row is not None and row[:2] != version:
                row = self._adapted(row)
                put = self.memtable.put
                version = self._version_bytes
            put(key, row, commit_ts)

    def apply_framed(self, keys: bytes, rows: bytes | None, count: int, commit_ts: int) -> None:
        """The same for `count` items of `u32 length, bytes`; `rows` None deletes the keys."""
        if rows is not None and count:
            self._adapted(rows[4:6])
            if self.schema.earlier:
                version = self._version_bytes
                items = split_items(rows, count)
                if any(row[:2] != version for row in items):
                    # Twice, for a newer version among them makes the rows before it old ones.
                    items = [self._adapted(row) for row in items]
                    rows = join_items([self._adapted(row) for row in items])
        put_framed(self.memtable, keys, rows, count, commit_ts)

    def as_version(self, row: bytes, version: int) -> bytes:
        """A row of any version as another has it."""
        map = self.schema.map(int.from_bytes(row[:2], "little"), version)
        return row if map is None else map.convert(row)

    @property
    def memtable_version(self) -> int:
        """The schema version of the memtable's layout."""
        return self.version or self.schema.oldest

    def _adapted(self, row: bytes) -> bytes:
        """A row for the memtable; one of a newer version begins a new memtable.

        Of the row's version alone (2 bytes), only that.
        """
        version = int.from_bytes(row[:2], "little")
        if version == self.version:
            return row
        if version > self.version:
            self.schema.columns_of(version)
            if self.version or self.memtable.entries:
                self._freeze(self)
            self.version = version
            self._version_bytes = row[:2]
            self._changed()
            return row
        return row if len(row) == 2 else self.as_version(row, self.version)

    # --- changes of what it consists of

    def learn(self, schema: TabletSchema) -> None:
        """Takes a newer schema. What is there keeps its layout, and so does the memtable."""
        self.schema = schema
        self._changed()

    def freeze(self, order: int, index: int) -> bool:
        """Begins a new memtable at `order` if this one has anything; False if it has not.

        `index`: all of the range's log up to it has been applied.
        """
        if not self.memtable.entries:
            return False
        self.unsettled.append(Frozen(self.memtable, self.memtable_version, self.order, index))
        self.memtable = MemTable()
        self.order = order
        self.since_log_bytes = 0
        self._changed()
        return True

    def link(self, metas: Sequence[SegmentMeta], order: int, index: int) -> None:
        """Adds a transaction's segments above everything there is; `order` is the memtable's then.

        REQUIRES: the memtable has just been frozen, and `metas` have orders between.
        """
        assert not self.memtable.entries
        self.order = order
        self.metas = sorted([*metas, *self.metas], key=_order, reverse=True)
        self.unsettled.append(Linked(metas, index))
        self._changed()

    def settle(self, item: Frozen | Linked, segments: Sequence[Segment] = ()) -> None:
        """The oldest unsettled item is in the manifest; `segments` are what a memtable became."""
        assert self.unsettled[0] is item
        self.unsettled.popleft()
        self.settled_index = max(self.settled_index, item.index)
        self._add(segments)
        self._changed()

    def replace(self, old: Sequence[SegmentMeta], new: Sequence[Segment]) -> None:
        """A compaction is in the manifest."""
        gone = {meta.number for meta in old}
        assert gone <= {meta.number for meta in self.metas}
        self.metas = [meta for meta in self.metas if meta.number not in gone]
        for number in gone:
            self._open.pop(number, None)
        self._add(new)
        self._changed()
        if self.shadows.memory_bytes:
            try:
                self.shadows.keep(self.runs())
            except StorageError:  # of another segment; nobody can scan, then
                self.shadows.clear()

    def _add(self, segments: Sequence[Segment]) -> None:
        metas = []
        for segment in segments:
            meta = segment.meta
            assert isinstance(meta, SegmentMeta)
            metas.append(meta)
            self._open[meta.number] = segment
        self.metas = sorted([*metas, *self.metas], key=_order, reverse=True)

    def _changed(self) -> None:
        self._runs.clear()
        self._shape = None

    # --- figures

    @property
    def key(self) -> tuple[int, int]:
        return self.range_id, self.table_id

    @property
    def shape(self) -> list[list[SegmentMeta]]:
        """The segments in runs, newest first."""
        if self._shape is None:
            self._shape = disjoint_runs(self.metas)
        return self._shape

    @property
    def rows(self) -> int:
        """An estimate: rows that were overwritten but not merged count twice."""
        memtables = self.memtable.live + sum(item.memtable.live for item in self.frozen)
        segments = sum(meta.rows - 2 * meta.tombstones for meta in self.metas)
        return max(memtables + segments, 0)

    @property
    def unsettled_links(self) -> bool:
        """True if the manifest does not name all of `metas` yet."""
        return any(isinstance(item, Linked) for item in self.unsettled)

    @property
    def frozen(self) -> list[Frozen]:
        """Oldest first."""
        return [item for item in self.unsettled if isinstance(item, Frozen)]

    @property
    def memory_bytes(self) -> int:
        """What memtables take that have rows: a flush can free no others."""
        return self.active_bytes + sum(item.memtable.memory_bytes for item in self.frozen)

    @property
    def active_bytes(self) -> int:
        """What the active memtable takes; nothing if it has no rows."""
        return self.memtable.memory_bytes if self.memtable.entries else 0

    @property
    def open_segments(self) -> list[Segment]:
        """Those that have been opened."""
        return list(self._open.values())


def _order(meta: SegmentMeta) -> int:
    return meta.order


def disjoint_runs(metas: Sequence[SegmentMeta]) -> list[list[SegmentMeta]]:
    """Segments, newest first, in runs: neighbours that share no key, each run in key order."""
    runs: list[list[SegmentMeta]] = []
    lows: list[bytes] = []  # of the last run
    for meta in metas:
        if runs:
            run = runs[-1]
            at = bisect_left(lows, meta.min_key)
            before = at == 0 or run[at - 1].max_key < meta.min_key
            after = at == len(run) or meta.max_key < run[at].min_key
            if before and after:
                run.insert(at, meta)
                lows.insert(at, meta.min_key)
                continue
        runs.append([meta])
        lows = [meta.min_key]
    return runs
