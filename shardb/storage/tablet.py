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
from typing import TYPE_CHECKING

from shardb._core.frames import join_items, split_items
from shardb._core.memload import put_framed
from shardb._core.memtable import MemTable
from shardb._core.rowcodec import RowLayout
from shardb._core.runs import Runs
from shardb._core.segment import Segment
from shardb.storage.schema import TabletSchema
from shardb.storage.segmentformat import SegmentIndex, SegmentMeta

if TYPE_CHECKING:
    from shardb._core.runs import Piece, Run

Opener = Callable[[SegmentMeta], Segment]


class Frozen:
    """A memtable that takes no more writes. All of the range's log up to `index` is in it or older.

    `flushing`: a worker writes it to a segment.
    """

    __slots__ = ("flushing", "index", "memtable", "order", "version")

    def __init__(self, memtable: MemTable, version: int, order: int, index: int) -> None:
        self.memtable = memtable
        self.version = version
        self.order = order
        self.index = index
        self.flushing = False


class Linked:
    """Segments of a committed transaction that the manifest does not name yet; `index` as above."""

    __slots__ = ("index", "metas")

    def __init__(self, metas: Sequence[SegmentMeta], index: int) -> None:
        self.metas = tuple(metas)
        self.index = index


class Tablet:
    """Versions of rows by key. A key's versions have ascending timestamps.

    `settled_index`: all of the range's log up to it is in segments that the manifest names.
    `gc_ts`: versions that only snapshots below it need may be gone.
    """

    def __init__(
        self,
        range_id: int,
        table_id: int,
        schema: TabletSchema,
        order: int,
        opener: Opener,
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
        self.order = order  # of the active memtable
        self.unsettled: deque[Frozen | Linked] = deque()
        self.metas = sorted(metas, key=_order, reverse=True)  # of all segments, newest first
        self.dropped = False
        self.since_log_bytes = 0  # how much log there was when the memtable was begun, 0: not known
        self._opener = opener
        self._open: dict[int, Segment] = {}
        self._runs: dict[int, Runs] = {}
        self._shape: list[list[SegmentMeta]] | None = None

    @property
    def layout(self) -> RowLayout:
        """The layout of rows that are written now."""
        return self.schema.layout()

    # --- reading

    def runs(self, version: int = 0) -> Runs:
        """The rows as a version of the table has them; a view that stays as it is.

        StorageError XX001 if the tablet cannot be read.
        """
        found = self._runs.get(version)
        if found is None:
            found = self._runs[version] = Runs(
                self.schema.layout(version), self._list(version or self.schema.version)
            )
        return found

    def newest(self, key: bytes) -> tuple[bytes | None, int] | None:
        """(row, or None if deleted; its commit_ts) of the newest version, or None."""
        return self.runs().newest(key)

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

    def piece(self, segment: Segment, version: int) -> Piece:
        """A segment with the way of its rows to a version."""
        index = segment.index
        assert isinstance(index, SegmentIndex)
        return segment, self.schema.map_from(segment.layout, index.columns, version)

    def _list(self, version: int) -> list[Run]:
        """All runs, newest first: memtables and groups of disjoint segments."""
        schema = self.schema
        runs: list[Run] = [(False, [(self.memtable, schema.map(schema.version, version))])]
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
        version = self.schema.version.to_bytes(2, "little")
        for key, row in writes:
            if row is not None and row[:2] != version:
                row = self.adapted(row)
            put(key, row, commit_ts)

    def apply_framed(self, keys: bytes, rows: bytes | None, count: int, commit_ts: int) -> None:
        """The same for `count` items of `u32 length, bytes`; `rows` None deletes the keys."""
        if rows is not None:
            rows = self.adapted_framed(rows, count)
        put_framed(self.memtable, keys, rows, count, commit_ts)

    def adapted(self, row: bytes) -> bytes:
        """A row of any version in the present layout."""
        map = self.schema.map(int.from_bytes(row[:2], "little"), self.schema.version)
        return row if map is None else map.convert(row)

    def adapted_framed(self, rows: bytes, count: int) -> bytes:
        """The same for framed rows."""
        if not self.schema.earlier:
            return rows
        version = self.schema.version.to_bytes(2, "little")
        items = split_items(rows, count)
        if all(row[:2] == version for row in items):
            return rows
        return join_items([self.adapted(row) for row in items])

    # --- changes of what it consists of

    def alter(self, schema: TabletSchema, order: int, index: int) -> None:
        """Takes a new schema; what is there keeps its layout. Fine if it is the present one."""
        self.freeze(order, index)
        self.schema = schema
        self._changed()

    def freeze(self, order: int, index: int) -> bool:
        """Begins a new memtable at `order` if this one has anything; False if it has not.

        `index`: all of the range's log up to it has been applied.
        """
        if not self.memtable.entries:
            return False
        self.unsettled.append(Frozen(self.memtable, self.schema.version, self.order, index))
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

    def settle(self, item: Frozen | Linked, metas: Sequence[SegmentMeta]) -> None:
        """The oldest unsettled item is in the manifest; `metas` are what a memtable became."""
        assert self.unsettled[0] is item
        self.unsettled.popleft()
        self.settled_index = max(self.settled_index, item.index)
        if metas:
            self.metas = sorted([*metas, *self.metas], key=_order, reverse=True)
        self._changed()

    def replace(self, old: Sequence[SegmentMeta], new: Sequence[SegmentMeta]) -> None:
        """A compaction is in the manifest."""
        gone = {meta.number for meta in old}
        assert gone <= {meta.number for meta in self.metas}
        kept = [meta for meta in self.metas if meta.number not in gone]
        self.metas = sorted([*kept, *new], key=_order, reverse=True)
        for number in gone:
            self._open.pop(number, None)
        self._changed()

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
        """What memtables take."""
        return self.memtable.memory_bytes + sum(
            item.memtable.memory_bytes for item in self.unsettled if isinstance(item, Frozen)
        )

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
