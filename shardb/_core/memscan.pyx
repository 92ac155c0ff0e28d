"""Snapshot scans of a tablet's memtables as Arrow record batches, built without the GIL.

The memtables are merged in key order, a block of rows at a time: each key's newest visible version
is picked, brought to the target's layout and the variable columns' lengths are summed; then Arrow's
buffers are filled from the row pointers, block by block, so that they stay in cache. It runs beside
the writer: see memtable.pxd.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.pyport cimport PY_SSIZE_T_MAX
from cpython.ref cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

import pyarrow as pa

from shardb._core.bloom cimport bloom_hash
from shardb._core.buffer cimport (
    Arena, Buf, arena_alloc, arena_free, arena_init, arena_reset, buf_free, buf_init,
)
from shardb._core.coreerror import CoreError
from shardb._core.memtable cimport (
    MemTable, Node, Version, key_compare, key_prefix, node_key, node_newest, node_next,
    node_version, version_row,
)
from shardb._core.rowcodec cimport Layout
from shardb._core.rowcolumns cimport (
    BLOCK_ROWS, SHAPE_VARIABLE, ArrowColumns, FoundRow, RowColumn, fill_keys, fill_rows,
    measure_rows, row_column,
)
from shardb._core.rowmap cimport ColumnMap, row_convert
from shardb._core.runs cimport Piece, Run, Runs
from shardb._core.segkeys cimport NOT_LOADED, SegmentKeys

cdef extern from *:
    """
    #define shardb_prefetch(p) __builtin_prefetch(p)
    """
    void prefetch "shardb_prefetch"(const void* p) noexcept nogil

cdef enum:
    BATCH_MAX_BYTES = 256 * 1024 * 1024   # far below what 32-bit Arrow offsets hold

cdef uint64_t NEWEST = 0xFFFFFFFFFFFFFFFF

# What `collect` ended with.
cdef enum Ended:
    ENDED_WELL
    ENDED_UNLOADED               # `unloaded` must load what it wants; then go on
    ENDED_STRANGE_ROW
    ENDED_NO_MEMORY

# A memtable, and where the scan stands in it.
ctypedef struct Source:
    Node* node                   # NULL: at the end
    const ColumnMap* map         # NULL: the target's layout
    const Layout* layout
    bint own
    int covers                   # so many of `cover` are newer than it

# A segment that is newer than some memtable.
ctypedef struct Cover:
    PyObject* keys               # SegmentKeys
    bint own
    const char* min_key
    const char* max_key
    uint32_t min_length
    uint32_t max_length


cdef inline int node_compare(const Node* a, const Node* b) noexcept nogil:
    """Byte order of their keys."""
    if a.prefix != b.prefix:
        return -1 if a.prefix < b.prefix else 1
    return key_compare(node_key(a), a.key_length, node_key(b), b.key_length)


def scan_batches(
    Runs runs not None,
    columns,
    arrow_types,
    uint64_t ts,
    bytes start=b"",
    bytes end=b"",
    *,
    bint with_key=False,
    MemTable overlay=None,
    Py_ssize_t batch_rows=65536,
):
    """Iterates pyarrow.RecordBatch of the rows in the memtables of `runs`, in `[start, end)` and
    visible at `ts`, in key order. Rows of segments are left out, but hide what is older.

    `columns` are positions in the layout of `runs`; `arrow_types` their Arrow types, whose buffers
    must be laid out as the row's values are. Columns are named `c<position>`; `with_key` adds
    binary `_key` and uint64 `_ts` at the end. Without any column a null column `_rows` carries
    the number of rows. `overlay` has a transaction's own writes in the same layout, newer than all
    runs; the `_ts` of own rows is 0. An empty `end` is no bound. No batch is empty; no
    rows, no batch. Safe in any one thread while the writer goes on.
    """
    return Scan(runs, columns, arrow_types, ts, start, end, with_key, overlay, batch_rows)


@cython.final
cdef class Scan:
    """The iterator of `scan_batches`; one thread at a time."""

    cdef Runs runs
    cdef MemTable overlay
    cdef ArrowColumns out
    cdef object schema_
    cdef uint64_t ts
    cdef bytes end
    cdef const char* end_at
    cdef Py_ssize_t end_length
    cdef uint64_t end_prefix
    cdef bint with_key
    cdef Py_ssize_t batch_rows
    cdef Source* source          # newest first
    cdef int source_count
    cdef Cover* cover            # newest first
    cdef int cover_count
    cdef list cover_keys
    cdef int unloaded_cover
    cdef FoundRow* found
    cdef RowColumn* column
    cdef Arena arena             # rows of the batch that were converted
    cdef Buf scratch
    # of the batch at hand
    cdef Py_ssize_t rows
    cdef Py_ssize_t measured
    cdef int64_t bytes_left
    cdef int64_t key_bytes

    def __cinit__(
        self, Runs runs, columns, arrow_types, uint64_t ts, bytes start, bytes end, bint with_key,
        MemTable overlay, Py_ssize_t batch_rows,
    ):
        cdef Py_ssize_t index
        arena_init(&self.arena)
        buf_init(&self.scratch)
        if batch_rows < 1:
            raise ValueError("no batch has less than one row")
        columns = list(columns)
        self.out = ArrowColumns(runs.layout, columns, arrow_types)
        self.runs = runs
        self.overlay = overlay
        self.ts = ts
        self.end = end
        self.end_at = PyBytes_AS_STRING(end)
        self.end_length = PyBytes_GET_SIZE(end)
        self.end_prefix = key_prefix(self.end_at, self.end_length)
        self.with_key = with_key
        self.batch_rows = batch_rows
        if batch_rows > PY_SSIZE_T_MAX // <Py_ssize_t> sizeof(FoundRow):
            raise MemoryError
        self.column = <RowColumn*> calloc(self.out.count or 1, sizeof(RowColumn))
        self.found = <FoundRow*> malloc(batch_rows * sizeof(FoundRow))
        self.source = <Source*> calloc(runs.run_count + 1, sizeof(Source))
        self.cover = <Cover*> calloc(runs.piece_count + 1, sizeof(Cover))
        if self.column == NULL or self.found == NULL or self.source == NULL or self.cover == NULL:
            raise MemoryError
        for index in range(self.out.count):
            self.column[index] = row_column(runs.layout, columns[index])
        fields = [pa.field(f"c{position}", kind)
                  for position, kind in zip(columns, self.out.types)]
        if with_key:
            fields += [pa.field("_key", pa.binary(), False), pa.field("_ts", pa.uint64(), False)]
        self.schema_ = pa.schema(fields or [pa.field("_rows", pa.null())])
        self.take_sources(start)

    def __dealloc__(self):
        arena_free(&self.arena)
        buf_free(&self.scratch)
        free(self.column)
        free(self.found)
        free(self.source)
        free(self.cover)

    cdef int take_sources(self, bytes start) except -1:
        """The memtables, and the segments that are newer than the oldest of them."""
        cdef int number
        cdef int oldest = -1
        cdef const Run* run
        cdef const Piece* piece
        self.cover_keys = []
        if self.overlay is not None:
            self.add_source(self.overlay, NULL, &self.runs.layout.c, True, start)
        for number in range(self.runs.run_count):
            if not self.runs.run[number].segments:
                oldest = number
        for number in range(oldest + 1):
            run = &self.runs.run[number]
            if run.segments:
                self.add_covers(run)
            else:
                piece = &self.runs.piece[run.first]
                self.add_source(
                    <MemTable> piece.source, piece.map, piece.layout, run.own, start
                )
        return 0

    cdef int add_source(
        self, MemTable memtable, const ColumnMap* map, const Layout* layout, bint own, bytes start
    ) except -1:
        cdef Source* s = &self.source[self.source_count]
        self.source_count += 1
        s.map = map
        s.layout = layout
        s.own = own
        s.covers = self.cover_count
        s.node = self.within(memtable.seek(PyBytes_AS_STRING(start), PyBytes_GET_SIZE(start)))
        return 0

    cdef int add_covers(self, const Run* run) except -1:
        cdef int number
        cdef Cover* cover
        cdef const Piece* piece
        cdef SegmentKeys keys
        for number in range(run.first, run.end):
            piece = &self.runs.piece[number]
            keys = SegmentKeys(<object> piece.source, not run.own)
            self.cover_keys.append(keys)
            cover = &self.cover[self.cover_count]
            self.cover_count += 1
            cover.keys = <PyObject*> keys
            cover.own = run.own
            cover.min_key = piece.min_key
            cover.min_length = piece.min_length
            cover.max_key = piece.max_key
            cover.max_length = piece.max_length
        return 0

    @property
    def schema(self):
        """The batches' pyarrow.Schema."""
        return self.schema_

    def __iter__(self):
        return self

    def __next__(self):
        cdef Ended ended = ENDED_UNLOADED
        self.rows = self.measured = 0
        self.bytes_left = BATCH_MAX_BYTES
        self.key_bytes = 0
        arena_reset(&self.arena)
        self.out.begin(self.batch_rows)
        while ended == ENDED_UNLOADED:
            with nogil:
                ended = self.collect()
            if ended == ENDED_UNLOADED:
                keys = <SegmentKeys> self.cover[self.unloaded_cover].keys
                (<SegmentKeys> keys).load((<SegmentKeys> keys).wanted)
        if ended == ENDED_STRANGE_ROW:
            raise CoreError("XX001", "a stored row has an unknown schema version")
        if ended == ENDED_NO_MEMORY:
            raise MemoryError
        if self.rows == 0:
            raise StopIteration
        self.out.allocate(self.rows)
        with nogil:
            self.fill()
        arrays = self.out.arrays(self.rows)
        if self.with_key:
            arrays += self.keys(self.rows)
        return pa.RecordBatch.from_arrays(arrays or [pa.nulls(self.rows)], schema=self.schema_)

    cdef void fill(self) noexcept nogil:
        """The wanted columns' values, from `found`."""
        cdef Py_ssize_t index
        cdef Py_ssize_t at = 0
        cdef Py_ssize_t count
        while at < self.rows:
            count = self.rows - at if self.rows - at < BLOCK_ROWS else BLOCK_ROWS
            for index in range(self.out.count):
                fill_rows(
                    &self.runs.layout.c, &self.column[index], &self.out.out[index],
                    self.found + at, at, count,
                )
            at += count

    cdef list keys(self, Py_ssize_t rows):
        """The `_key` and `_ts` arrays."""
        cdef object offsets = pa.allocate_buffer((rows + 1) * 4)
        cdef object data = pa.allocate_buffer(self.key_bytes)
        cdef object stamps = pa.allocate_buffer(rows * 8)
        cdef int32_t* offset = <int32_t*> <uintptr_t> offsets.address
        cdef char* to = <char*> <uintptr_t> data.address
        cdef uint64_t* stamp = <uint64_t*> <uintptr_t> stamps.address
        cdef Py_ssize_t index
        with nogil:
            offset[0] = 0
            fill_keys(self.found, offset, to, 0, rows)
            for index in range(rows):
                stamp[index] = self.found[index].ts
        return [
            pa.Array.from_buffers(pa.binary(), rows, [None, offsets, data], 0),
            pa.Array.from_buffers(pa.uint64(), rows, [None, stamps], 0),
        ]

    cdef inline Node* within(self, Node* node) noexcept nogil:
        """The node, or NULL if it is past the end of the scan."""
        if node == NULL or self.end_length == 0 or node.prefix < self.end_prefix:
            return node
        if key_compare(node_key(node), node.key_length, self.end_at, self.end_length) >= 0:
            return NULL
        return node

    cdef Ended collect(self) noexcept nogil:
        """Adds the next rows to `found`, and their variable columns' offsets, until there are
        `batch_rows` or enough bytes."""
        cdef Source* s
        cdef Source* first
        cdef Node* node
        cdef int index
        cdef Ended ended
        while self.rows < self.batch_rows and self.bytes_left > 0:
            first = NULL
            for index in range(self.source_count):
                s = &self.source[index]
                if s.node != NULL and (first == NULL or node_compare(s.node, first.node) < 0):
                    first = s
            if first == NULL:
                break
            node = first.node
            ended = self.take(first)
            if ended != ENDED_WELL:
                return ended
            for index in range(self.source_count):
                s = &self.source[index]
                if s.node == NULL or (s != first and node_compare(s.node, node) != 0):
                    continue
                s.node = self.within(node_next(s.node))
                if s.node != NULL:
                    prefetch(s.node)
            if self.rows - self.measured == BLOCK_ROWS:
                self.measure()
        self.measure()
        return ENDED_WELL

    cdef Ended take(self, Source* first) noexcept nogil:
        """Adds the row that is visible of the key of `first`, the newest source that has it."""
        cdef Source* s = first
        cdef const Source* end = self.source + self.source_count
        cdef Node* node = first.node
        cdef const Version* version = NULL
        cdef int status
        while s < end:
            if s.node != NULL and (s == first or node_compare(s.node, node) == 0):
                version = node_newest(s.node) if s.own else node_version(s.node, self.ts)
                if version != NULL:
                    break
            s += 1
        if version == NULL or version.tombstone:
            return ENDED_WELL
        if s.covers:
            status = self.is_covered(node, s.covers)
            if status < 0:
                return ENDED_UNLOADED
            if status:
                return ENDED_WELL
        return self.add(s, node, version)

    cdef int is_covered(self, Node* node, int covers) noexcept nogil:
        """1 if one of the first `covers` segments has a visible version of the key, else 0;
        NOT_LOADED: `unloaded_cover` must load what it wants first."""
        cdef const char* key = node_key(node)
        cdef uint32_t length = node.key_length
        cdef uint64_t hash = 0
        cdef const Cover* cover
        cdef int index
        cdef int status
        for index in range(covers):
            cover = &self.cover[index]
            if (
                key_compare(cover.min_key, cover.min_length, key, length) > 0
                or key_compare(cover.max_key, cover.max_length, key, length) < 0
            ):
                continue
            if hash == 0:
                hash = bloom_hash(key, length)
            status = (<SegmentKeys> cover.keys).has(
                key, length, hash, NEWEST if cover.own else self.ts
            )
            if status == NOT_LOADED:
                self.unloaded_cover = index
            if status:
                return status
        return 0

    cdef Ended add(self, const Source* s, const Node* node, const Version* version) noexcept nogil:
        """Adds a visible row in the target's layout."""
        cdef FoundRow* found = &self.found[self.rows]
        cdef uint32_t length = version.length
        cdef uint16_t schema_version
        cdef char* converted
        found.row = version_row(version)
        found.key = node_key(node)
        found.key_length = node.key_length
        found.ts = 0 if s.own else version.ts
        if length < s.layout.data_at:
            return ENDED_STRANGE_ROW
        memcpy(&schema_version, found.row, 2)
        if schema_version != s.layout.schema_version:
            return ENDED_STRANGE_ROW
        if s.map != NULL:
            self.scratch.len = 0
            row_convert(s.map, s.layout, &self.runs.layout.c, found.row, &self.scratch)
            if self.scratch.failed:
                return ENDED_NO_MEMORY
            length = <uint32_t> self.scratch.len
            converted = arena_alloc(&self.arena, length)
            if converted == NULL:
                return ENDED_NO_MEMORY
            memcpy(converted, self.scratch.data, length)
            found.row = converted
        self.key_bytes += node.key_length
        self.bytes_left -= <int64_t> length + node.key_length
        self.rows += 1
        return ENDED_WELL

    cdef void measure(self) noexcept nogil:
        """The variable columns' offsets of rows since the last time, while they are in cache."""
        cdef Py_ssize_t index
        for index in range(self.out.count):
            if self.out.out[index].shape == SHAPE_VARIABLE:
                measure_rows(
                    &self.runs.layout.c, &self.column[index], &self.out.out[index],
                    self.found + self.measured, self.measured, self.rows - self.measured,
                )
        self.measured = self.rows
