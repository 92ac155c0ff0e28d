"""Snapshot scans of a memtable as Arrow record batches, built without the GIL.

Two passes a batch: the first walks the keys, picks each key's version visible at the timestamp and
sums the variable columns' lengths; the second fills Arrow's buffers from the row pointers, a block
of rows at a time so that they stay in cache. It runs beside the writer: see memtable.pxd.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint16_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

import pyarrow as pa

from shardb._core.coreerror import CoreError
from shardb._core.memtable cimport (
    MemTable, Node, Version, key_compare, key_prefix, node_key, node_next, node_version,
    version_row,
)
from shardb._core.rowcodec cimport RowLayout
from shardb._core.rowcolumns cimport (
    BLOCK_ROWS, SHAPE_VARIABLE, ArrowColumns, FoundRow, RowColumn, fill_keys, fill_rows,
    measure_rows, row_column,
)

cdef extern from *:
    """
    #define shardb_prefetch(p) __builtin_prefetch(p)
    """
    void prefetch "shardb_prefetch"(const void* p) noexcept nogil

cdef enum:
    BATCH_MAX_BYTES = 256 * 1024 * 1024   # far below what 32-bit Arrow offsets hold


def scan_batches(
    MemTable memtable not None,
    RowLayout layout not None,
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
    """Iterates pyarrow.RecordBatch of the rows of `[start, end)` visible at `ts`, in key order.

    `columns` are positions in `layout`; `arrow_types` their Arrow types, whose buffers must be laid
    out as the row's values are. Columns are named `c<position>`; `with_key` adds binary `_key` and
    uint64 `_ts` at the end. Without any column a null column `_rows` carries the number of rows.
    `overlay` is a second memtable (a transaction's own writes) whose newest versions hide those
    below; their `_ts` is that of the version they hide, 0 if there is none. An empty `end` is no
    bound. No batch is empty; no rows, no batch. Safe in any one thread while the writer goes on.
    """
    return Scan(
        memtable, layout, columns, arrow_types, ts, start, end, with_key, overlay, batch_rows
    )


@cython.final
cdef class Scan:
    """The iterator of `scan_batches`; one thread at a time."""

    cdef MemTable memtable
    cdef MemTable overlay
    cdef RowLayout layout
    cdef ArrowColumns out
    cdef object schema_
    cdef uint64_t ts
    cdef bytes end
    cdef const char* end_at
    cdef Py_ssize_t end_length
    cdef uint64_t end_prefix
    cdef bint with_key
    cdef Py_ssize_t batch_rows
    cdef Node* node
    cdef Node* own
    cdef FoundRow* found
    cdef RowColumn* column
    cdef int64_t key_bytes
    cdef bint strange_row

    def __cinit__(
        self, MemTable memtable, RowLayout layout, columns, arrow_types, uint64_t ts, bytes start,
        bytes end, bint with_key, MemTable overlay, Py_ssize_t batch_rows,
    ):
        cdef Py_ssize_t index
        self.column = NULL
        self.found = NULL
        if batch_rows < 1:
            raise ValueError("no batch has less than one row")
        columns = list(columns)
        self.out = ArrowColumns(layout, columns, arrow_types)
        self.memtable = memtable
        self.overlay = overlay
        self.layout = layout
        self.ts = ts
        self.end = end
        self.end_at = PyBytes_AS_STRING(end)
        self.end_length = PyBytes_GET_SIZE(end)
        self.end_prefix = key_prefix(self.end_at, self.end_length)
        self.with_key = with_key
        self.batch_rows = batch_rows
        self.column = <RowColumn*> calloc(self.out.count or 1, sizeof(RowColumn))
        self.found = <FoundRow*> malloc(batch_rows * sizeof(FoundRow))
        if self.column == NULL or self.found == NULL:
            raise MemoryError
        for index in range(self.out.count):
            self.column[index] = row_column(layout, columns[index])
        fields = [pa.field(f"c{position}", kind)
                  for position, kind in zip(columns, self.out.types)]
        if with_key:
            fields += [pa.field("_key", pa.binary(), False), pa.field("_ts", pa.uint64(), False)]
        self.schema_ = pa.schema(fields or [pa.field("_rows", pa.null())])
        self.node = memtable.seek(PyBytes_AS_STRING(start), PyBytes_GET_SIZE(start))
        if overlay is not None:
            self.own = overlay.seek(PyBytes_AS_STRING(start), PyBytes_GET_SIZE(start))

    def __dealloc__(self):
        free(self.column)
        free(self.found)

    @property
    def schema(self):
        """The batches' pyarrow.Schema."""
        return self.schema_

    def __iter__(self):
        return self

    def __next__(self):
        cdef Py_ssize_t rows
        self.out.begin(self.batch_rows)
        with nogil:
            rows = self.collect()
        if self.strange_row:
            raise CoreError("XX001", "a stored row has an unknown schema version")
        if rows == 0:
            raise StopIteration
        self.out.allocate(rows)
        with nogil:
            self.fill(rows)
        arrays = self.out.arrays(rows)
        if self.with_key:
            arrays += self.keys(rows)
        return pa.RecordBatch.from_arrays(arrays or [pa.nulls(rows)], schema=self.schema_)

    cdef void fill(self, Py_ssize_t rows) noexcept nogil:
        """The wanted columns' values, from `found`."""
        cdef Py_ssize_t index
        cdef Py_ssize_t at = 0
        cdef Py_ssize_t count
        while at < rows:
            count = rows - at if rows - at < BLOCK_ROWS else BLOCK_ROWS
            for index in range(self.out.count):
                fill_rows(
                    &self.layout.c, &self.column[index], &self.out.out[index], self.found + at, at,
                    count,
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

    cdef Py_ssize_t collect(self) noexcept nogil:
        """Fills `found` and the variable columns' offsets with the next rows; returns how many."""
        cdef Py_ssize_t rows = 0
        cdef Py_ssize_t measured = 0
        cdef int64_t bytes_left = BATCH_MAX_BYTES
        cdef Node* base = self.within(self.node)
        cdef Node* own = self.within(self.own)
        cdef Node* node
        cdef const Version* version
        cdef uint64_t ts
        cdef int order
        self.key_bytes = 0
        while rows < self.batch_rows and bytes_left > 0:
            if own == NULL:
                if base == NULL:
                    break
                order = -1
            elif base == NULL:
                order = 1
            else:
                order = key_compare(
                    node_key(base), base.key_length, node_key(own), own.key_length
                )
            ts = 0
            version = NULL
            node = base
            if order <= 0:
                version = node_version(base, self.ts)
                if version != NULL:
                    ts = version.ts
                base = self.within(node_next(base))
                if base != NULL:
                    prefetch(base)
            if order >= 0:
                node = own
                version = own.newest
                own = self.within(node_next(own))
            if version == NULL or version.tombstone:
                continue
            if not self.take(rows, node, version, ts):
                self.strange_row = True
                return 0
            rows += 1
            bytes_left -= <int64_t> version.length + node.key_length
            if rows - measured == BLOCK_ROWS:
                self.measure(measured, rows)
                measured = rows
        self.measure(measured, rows)
        self.node = base
        self.own = own
        return rows

    cdef void measure(self, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
        """The variable columns' offsets, while the rows are in cache."""
        cdef Py_ssize_t index
        for index in range(self.out.count):
            if self.out.out[index].shape == SHAPE_VARIABLE:
                measure_rows(
                    &self.layout.c, &self.column[index], &self.out.out[index], self.found + start,
                    start, end - start,
                )

    cdef inline bint take(
        self, Py_ssize_t at, const Node* node, const Version* version, uint64_t ts
    ) noexcept nogil:
        """Notes one visible row; False if it is not of the layout."""
        cdef FoundRow* found = &self.found[at]
        cdef uint16_t schema_version
        found.row = version_row(version)
        found.key = node_key(node)
        found.key_length = node.key_length
        found.ts = ts
        self.key_bytes += node.key_length
        memcpy(&schema_version, found.row, 2)
        return (
            schema_version == self.layout.c.schema_version
            and version.length >= self.layout.c.data_at
        )
