"""Snapshot scans of a memtable as Arrow record batches, built without the GIL.

Two passes a batch: the first walks the keys, picks each key's version visible at the timestamp and
sums the variable columns' lengths; the second fills Arrow's buffers from the row pointers, a block
of rows at a time so that they stay in cache. It runs beside the writer: see memtable.pxd.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.pyport cimport PY_SSIZE_T_MAX
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

import pyarrow as pa

from shardb._core.coreerror import CoreError
from shardb._core.datum cimport T_BOOL, T_INTERVAL, T_NUMERIC
from shardb._core.memtable cimport (
    MemTable, Node, Version, key_compare, key_prefix, node_key, node_newest, node_next, node_version,
    version_row,
)
from shardb._core.rowcodec cimport ColumnLayout, Layout, RowLayout

cdef extern from *:
    """
    #define shardb_prefetch(p) __builtin_prefetch(p)
    """
    void prefetch "shardb_prefetch"(const void* p) noexcept nogil

cdef enum:
    BLOCK_ROWS = 512
    BATCH_MAX_BYTES = 256 * 1024 * 1024   # far below what 32-bit Arrow offsets hold

cdef enum Shape:
    SHAPE_BITS
    SHAPE_FIXED
    SHAPE_INTERVAL
    SHAPE_VARIABLE

# A visible row: its bytes, its key and its commit timestamp.
ctypedef struct Found:
    const char* row
    const char* key
    uint64_t ts
    uint32_t key_length

# A column of the batch being built; the buffers are owned by Python objects meanwhile.
ctypedef struct Out:
    Shape shape
    uint16_t position
    uint32_t slot
    uint32_t width
    uint8_t* validity
    char* values
    int32_t* offsets
    int64_t nulls


cdef inline bint row_null(const char* row, uint16_t position) noexcept nogil:
    return ((<const uint8_t*> row)[2 + (position >> 3)] >> (position & 7)) & 1


cdef inline void variable_at(
    const Layout* layout, const char* row, uint32_t slot, const char** start, uint32_t* length
) noexcept nogil:
    """The bytes of the variable column number `slot`."""
    cdef uint32_t begin = 0
    cdef uint32_t end
    if slot:
        memcpy(&begin, row + layout.offsets_at + 4 * (slot - 1), 4)
    memcpy(&end, row + layout.offsets_at + 4 * slot, 4)
    start[0] = row + layout.data_at + begin
    length[0] = end - begin


cdef void fill_validity(
    Out* out, const Found* found, Py_ssize_t start, Py_ssize_t end
) noexcept nogil:
    cdef Py_ssize_t index
    cdef uint8_t null
    for index in range(start, end):
        null = row_null(found[index].row, out.position)
        out.nulls += null
        out.validity[index >> 3] |= (null ^ 1) << (index & 7)


cdef void fill_interval(char* to, const char* slot) noexcept nogil:
    """Months and days as they are, microseconds to nanoseconds, kept within 64 bits."""
    cdef int64_t us
    cdef int64_t limit = 9223372036854775807 // 1000
    memcpy(to, slot, 8)
    memcpy(&us, slot + 8, 8)
    us = limit if us > limit else (-limit if us < -limit else us)
    us *= 1000
    memcpy(to + 8, &us, 8)


cdef void fill_values(
    const Layout* layout, Out* out, const Found* found, Py_ssize_t start, Py_ssize_t end
) noexcept nogil:
    cdef Py_ssize_t index
    cdef const char* at
    cdef uint32_t length
    cdef uint32_t slot = out.slot
    if out.shape == SHAPE_VARIABLE:
        for index in range(start, end):
            variable_at(layout, found[index].row, slot, &at, &length)
            memcpy(out.values + out.offsets[index], at, length)
    elif out.shape == SHAPE_BITS:
        for index in range(start, end):
            (<uint8_t*> out.values)[index >> 3] |= (found[index].row[slot] & 1) << (index & 7)
    elif out.shape == SHAPE_INTERVAL:
        for index in range(start, end):
            fill_interval(out.values + 16 * index, found[index].row + slot)
    elif out.width == 8:
        for index in range(start, end):
            memcpy(out.values + 8 * index, found[index].row + slot, 8)
    elif out.width == 4:
        for index in range(start, end):
            memcpy(out.values + 4 * index, found[index].row + slot, 4)
    elif out.width == 16:
        for index in range(start, end):
            memcpy(out.values + 16 * index, found[index].row + slot, 16)
    else:
        for index in range(start, end):
            memcpy(out.values + <Py_ssize_t> out.width * index, found[index].row + slot, out.width)


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
    cdef list arrow_types
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
    cdef Found* found
    cdef Out* outs
    cdef Py_ssize_t out_count
    cdef int64_t key_bytes
    cdef bint strange_row

    def __cinit__(
        self, MemTable memtable, RowLayout layout, columns, arrow_types, uint64_t ts, bytes start,
        bytes end, bint with_key, MemTable overlay, Py_ssize_t batch_rows,
    ):
        cdef Py_ssize_t index
        columns = list(columns)
        self.arrow_types = list(arrow_types)
        if len(columns) != len(self.arrow_types) or batch_rows < 1:
            raise ValueError("one Arrow type a column and at least one row a batch")
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
        self.out_count = len(columns)
        if batch_rows > PY_SSIZE_T_MAX // <Py_ssize_t> sizeof(Found):
            raise MemoryError
        self.outs = <Out*> calloc(self.out_count or 1, sizeof(Out))
        self.found = <Found*> malloc(batch_rows * sizeof(Found))
        if self.outs == NULL or self.found == NULL:
            raise MemoryError
        for index in range(self.out_count):
            self.describe(&self.outs[index], columns[index], self.arrow_types[index])
        fields = [pa.field(f"c{position}", kind)
                  for position, kind in zip(columns, self.arrow_types)]
        if with_key:
            fields += [pa.field("_key", pa.binary(), False), pa.field("_ts", pa.uint64(), False)]
        self.schema_ = pa.schema(fields or [pa.field("_rows", pa.null())])
        self.node = memtable.seek(PyBytes_AS_STRING(start), PyBytes_GET_SIZE(start))
        if overlay is not None:
            self.own = overlay.seek(PyBytes_AS_STRING(start), PyBytes_GET_SIZE(start))

    def __dealloc__(self):
        free(self.outs)
        free(self.found)

    cdef int describe(self, Out* out, int position, kind) except -1:
        """Checks that the Arrow type holds the column's values as they lie in the row."""
        cdef const ColumnLayout* column
        if position < 0 or position >= self.layout.c.columns:
            raise ValueError(f"no column {position}")
        column = &self.layout.c.column[position]
        out.position = position
        out.slot = column.slot
        out.width = column.width
        if column.variable:
            out.shape = SHAPE_VARIABLE
            fits = kind in (pa.string(), pa.binary())
        elif column.type == T_BOOL:
            out.shape = SHAPE_BITS
            fits = kind == pa.bool_()
        elif column.type == T_INTERVAL:
            out.shape = SHAPE_INTERVAL
            fits = kind == pa.month_day_nano_interval()
        else:
            out.shape = SHAPE_FIXED
            fits = (not pa.types.is_nested(kind)) and kind.bit_width == 8 * column.width
            if column.type == T_NUMERIC:
                fits = fits and pa.types.is_decimal(kind) and kind.scale == column.scale
        if not fits:
            raise ValueError(f"column {position} of type {column.type} is not laid out as {kind}")
        return 0

    @property
    def schema(self):
        """The batches' pyarrow.Schema."""
        return self.schema_

    def __iter__(self):
        return self

    def __next__(self):
        cdef Py_ssize_t index
        cdef Py_ssize_t rows
        cdef Out* out
        cdef list offsets = [None] * self.out_count
        for index in range(self.out_count):
            if self.outs[index].shape == SHAPE_VARIABLE:
                offsets[index] = pa.allocate_buffer((self.batch_rows + 1) * 4)
                self.outs[index].offsets = <int32_t*> <uintptr_t> offsets[index].address
        with nogil:
            rows = self.collect()
        if self.strange_row:
            raise CoreError("XX001", "a stored row has an unknown schema version")
        if rows == 0:
            raise StopIteration
        arrays = self.columns(rows, offsets)
        if self.with_key:
            arrays += self.keys(rows)
        return pa.RecordBatch.from_arrays(arrays or [pa.nulls(rows)], schema=self.schema_)

    cdef list columns(self, Py_ssize_t rows, list offsets):
        """The wanted columns as Arrow arrays, from `found` and the offsets `collect` wrote."""
        cdef Py_ssize_t bitmap_bytes = (rows + 7) // 8
        cdef Py_ssize_t index
        cdef Py_ssize_t size
        cdef Py_ssize_t start
        cdef Py_ssize_t end
        cdef Out* out
        cdef list validity = []
        cdef list values = []
        for index in range(self.out_count):
            out = &self.outs[index]
            if out.shape == SHAPE_VARIABLE:
                size = out.offsets[rows]
            elif out.shape == SHAPE_BITS:
                size = bitmap_bytes
            else:
                size = rows * <Py_ssize_t> out.width
            validity.append(pa.allocate_buffer(bitmap_bytes))
            values.append(pa.allocate_buffer(size))
            out.validity = <uint8_t*> <uintptr_t> validity[index].address
            out.values = <char*> <uintptr_t> values[index].address
            out.nulls = 0
        with nogil:
            for index in range(self.out_count):
                memset(self.outs[index].validity, 0, bitmap_bytes)
                if self.outs[index].shape == SHAPE_BITS:
                    memset(self.outs[index].values, 0, bitmap_bytes)
            start = 0
            while start < rows:
                end = start + BLOCK_ROWS
                if end > rows:
                    end = rows
                for index in range(self.out_count):
                    fill_validity(&self.outs[index], self.found, start, end)
                    fill_values(&self.layout.c, &self.outs[index], self.found, start, end)
                start = end
        arrays = []
        for index in range(self.out_count):
            out = &self.outs[index]
            buffers = [validity[index] if out.nulls else None, values[index]]
            if out.shape == SHAPE_VARIABLE:
                buffers.insert(1, offsets[index].slice(0, (rows + 1) * 4))
            arrays.append(
                pa.Array.from_buffers(self.arrow_types[index], rows, buffers, out.nulls)
            )
        return arrays

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
            for index in range(rows):
                memcpy(to + offset[index], self.found[index].key, self.found[index].key_length)
                offset[index + 1] = offset[index] + <int32_t> self.found[index].key_length
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
        cdef int64_t bytes_left = BATCH_MAX_BYTES
        cdef Node* base = self.within(self.node)
        cdef Node* own = self.within(self.own)
        cdef Node* node
        cdef const Version* version
        cdef Py_ssize_t index
        cdef uint64_t ts
        cdef int order
        self.key_bytes = 0
        for index in range(self.out_count):
            if self.outs[index].shape == SHAPE_VARIABLE:
                self.outs[index].offsets[0] = 0
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
                version = node_newest(own)
                own = self.within(node_next(own))
            if version == NULL or version.tombstone:
                continue
            self.take(rows, node, version, ts)
            rows += 1
            bytes_left -= <int64_t> version.length + node.key_length
        self.node = base
        self.own = own
        return rows

    cdef inline void take(
        self, Py_ssize_t at, const Node* node, const Version* version, uint64_t ts
    ) noexcept nogil:
        """Notes one visible row and the lengths of its variable columns."""
        cdef Found* found = &self.found[at]
        cdef Py_ssize_t index
        cdef Out* out
        cdef const char* start
        cdef uint32_t length
        cdef uint16_t schema_version
        found.row = version_row(version)
        found.key = node_key(node)
        found.key_length = node.key_length
        found.ts = ts
        self.key_bytes += node.key_length
        if version.length < self.layout.c.data_at:
            self.strange_row = True
        else:
            memcpy(&schema_version, found.row, 2)
            self.strange_row |= schema_version != self.layout.c.schema_version
        for index in range(self.out_count):
            out = &self.outs[index]
            if out.shape == SHAPE_VARIABLE:
                length = 0
                if not self.strange_row:
                    variable_at(&self.layout.c, found.row, out.slot, &start, &length)
                out.offsets[at + 1] = out.offsets[at] + <int32_t> length
