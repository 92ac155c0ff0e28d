"""Streams of record batches in key order, merged into one such stream.

The stream with the least key gives all its rows before the least key of the others at once; long
pieces are passed on as they are, others are gathered and copied without the GIL.
"""

cimport cython
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc

import pyarrow as pa

from shardb._core.datum cimport T_BYTEA, T_INT8
from shardb._core.memtable cimport key_compare
from shardb._core.rowcodec cimport RowLayout
from shardb._core.rowcolumns cimport (
    SHAPE_VARIABLE, ArrowColumns, OutColumn, fill_span, measure_span,
)

cdef enum:
    BATCH_MAX_BYTES = 256 * 1024 * 1024   # of strings in a batch that is put together
    PASSED_ON_ROWS = 4096                 # pieces from this on are not copied

cdef RowLayout KEY_LAYOUT = RowLayout(0, [(T_BYTEA, -1), (T_INT8, -1)])  # `_key`, `_ts`

# A column of a batch that was drawn.
ctypedef struct Drawn:
    const uint8_t* validity
    const int32_t* offsets
    const char* values
    int64_t shift                # of its first row in the buffers

# Where a stream stands.
ctypedef struct Head:
    const Drawn* column          # of its batch; NULL: the stream has ended
    const Drawn* key
    uint32_t at
    uint32_t rows

# Consecutive rows of a batch.
ctypedef struct Part:
    const Drawn* column
    uint32_t start
    uint32_t count


cdef inline const char* key_at(const Head* head, uint32_t row, int32_t* length) noexcept nogil:
    cdef const int32_t* offsets = head.key.offsets + head.key.shift + row
    length[0] = offsets[1] - offsets[0]
    return head.key.values + offsets[0]


cdef class DrawnBatch:
    """Keeps a batch, and the places of its columns: those wanted, `_key`, `_ts`."""

    cdef object batch
    cdef Drawn* column

    def __cinit__(self, batch):
        cdef Drawn* to
        self.batch = batch
        self.column = <Drawn*> calloc(batch.num_columns, sizeof(Drawn))
        if self.column == NULL:
            raise MemoryError
        for at, array in enumerate(batch.columns):
            to = &self.column[<int> at]
            buffers = array.buffers()
            to.shift = array.offset
            if buffers[0] is not None and array.null_count:
                to.validity = <const uint8_t*> <uintptr_t> buffers[0].address
            if len(buffers) == 3:
                to.offsets = <const int32_t*> <uintptr_t> buffers[1].address
            if buffers[len(buffers) - 1] is not None:
                to.values = <const char*> <uintptr_t> buffers[len(buffers) - 1].address

    def __dealloc__(self):
        free(self.column)


@cython.final
cdef class Merge:
    """Batches of `columns` (positions in `layout`) of all rows of `streams`, in key order.

    Each stream has the columns, as `arrow_types`, then `_key` and `_ts`, and is in key order;
    no two have the same key. `with_key` keeps the last two. No batch is empty.
    """

    cdef readonly object schema
    cdef list streams
    cdef list batches            # DrawnBatch of each stream
    cdef list gathered           # those that parts point into
    cdef ArrowColumns out
    cdef ArrowColumns key_out
    cdef bint with_key
    cdef uint32_t batch_rows
    cdef Head* head
    cdef int head_count
    cdef Part* part
    cdef uint32_t part_count
    cdef uint32_t rows           # of the parts
    cdef int64_t bytes
    cdef bint begun

    def __cinit__(self, RowLayout layout not None, columns, arrow_types, bint with_key, streams,
                  uint32_t batch_rows):
        self.head = NULL
        self.part = NULL
        self.streams = list(streams)
        self.batches = [None] * len(self.streams)
        self.gathered = []
        self.out = ArrowColumns(layout, columns, arrow_types)
        self.key_out = ArrowColumns(KEY_LAYOUT, [0, 1], [pa.binary(), pa.uint64()])
        self.with_key = with_key
        self.batch_rows = batch_rows
        self.head_count = len(self.streams)
        self.head = <Head*> calloc(self.head_count or 1, sizeof(Head))
        self.part = <Part*> malloc((batch_rows or 1) * sizeof(Part))
        if self.head == NULL or self.part == NULL:
            raise MemoryError
        fields = [pa.field(f"c{position}", kind)
                  for position, kind in zip(columns, self.out.types)]
        if with_key:
            fields += [pa.field("_key", pa.binary(), False), pa.field("_ts", pa.uint64(), False)]
        self.schema = pa.schema(fields or [pa.field("_rows", pa.null())])

    def __dealloc__(self):
        free(self.head)
        free(self.part)

    def __iter__(self):
        return self

    def __next__(self):
        cdef int at
        cdef int first
        cdef uint32_t count = 0
        if not self.begun:
            self.begun = True
            for at in range(self.head_count):
                self.draw(at)
        self.part_count = self.rows = 0
        self.bytes = 0
        while True:
            with nogil:
                first = self.gather(&count)
            if first < 0:
                break
            if count and self.rows == 0:
                # A long piece: it is passed on as it is.
                batch = (<DrawnBatch> self.batches[first]).batch.slice(self.head[first].at, count)
                self.head[first].at += count
                if self.head[first].at == self.head[first].rows:
                    self.draw(first)
                self.forget_gathered()
                return self.cut(batch)
            if count:
                break
            self.draw(first)
        if self.rows == 0:
            raise StopIteration
        batch = self.put_together()
        self.forget_gathered()
        return batch

    cdef int forget_gathered(self) except -1:
        self.gathered = [drawn for drawn in self.batches if drawn is not None]
        return 0

    cdef int draw(self, int at) except -1:
        """Takes the stream's next batch."""
        cdef Head* head = &self.head[at]
        cdef DrawnBatch drawn
        head.column = NULL
        self.batches[at] = None
        batch = next(self.streams[at], None)
        if batch is None:
            return 0
        drawn = self.batches[at] = DrawnBatch(batch)
        self.gathered.append(drawn)
        head.column = drawn.column
        head.key = drawn.column + self.out.count
        head.at = 0
        head.rows = batch.num_rows
        return 0

    cdef int gather(self, uint32_t* count) noexcept nogil:
        """Notes parts until the batch is full or all streams have ended: -1. Otherwise a stream:
        with 0 in `count` its batch is used up, else so many rows of it need not be copied."""
        cdef int at
        cdef int first
        cdef int second
        cdef Head* head
        cdef uint32_t end
        while self.rows < self.batch_rows:
            first = second = -1
            for at in range(self.head_count):
                if self.head[at].column == NULL:
                    continue
                if first < 0 or self.is_before(at, first):
                    second = first
                    first = at
                elif second < 0 or self.is_before(at, second):
                    second = at
            if first < 0:
                return -1
            head = &self.head[first]
            end = head.rows if second < 0 else self.rows_before(head, &self.head[second])
            count[0] = end - head.at
            if count[0] >= PASSED_ON_ROWS:
                return first
            if count[0] > self.batch_rows - self.rows:
                count[0] = self.batch_rows - self.rows
            if not self.add(head, count[0]):
                return -1
            count[0] = 0
            if head.at == head.rows:
                return first
        return -1

    cdef bint is_before(self, int a, int b) noexcept nogil:
        cdef int32_t a_length = 0
        cdef int32_t b_length = 0
        cdef const char* a_key = key_at(&self.head[a], self.head[a].at, &a_length)
        cdef const char* b_key = key_at(&self.head[b], self.head[b].at, &b_length)
        return key_compare(a_key, a_length, b_key, b_length) < 0

    cdef uint32_t rows_before(self, const Head* head, const Head* other) noexcept nogil:
        """The first row of `head` that is not before the key at which `other` stands."""
        cdef int32_t length = 0
        cdef int32_t found_length = 0
        cdef const char* key = key_at(other, other.at, &length)
        cdef const char* found
        cdef uint32_t low = head.at + 1
        cdef uint32_t high = low
        cdef uint32_t step = 1
        cdef uint32_t middle
        # Invariant: rows before `low` are before the key.
        while high < head.rows:
            found = key_at(head, high, &found_length)
            if key_compare(found, found_length, key, length) > 0:
                break
            low = high + 1
            high = high + step if head.rows - high > step else head.rows
            step *= 2
        while low < high:
            middle = low + ((high - low) >> 1)
            found = key_at(head, middle, &found_length)
            if key_compare(found, found_length, key, length) < 0:
                low = middle + 1
            else:
                high = middle
        return low

    cdef bint add(self, Head* head, uint32_t count) noexcept nogil:
        """Notes rows of a stream's batch; False if the batch has too many bytes with them."""
        cdef int64_t bytes = 0
        cdef Py_ssize_t at
        cdef const Drawn* column
        cdef int64_t start
        for at in range(self.out.count + 1):
            column = &head.column[at]
            if column.offsets != NULL:
                start = column.shift + head.at
                bytes += column.offsets[start + count] - column.offsets[start]
        if self.rows and self.bytes + bytes > BATCH_MAX_BYTES:
            return False
        self.part[self.part_count].column = head.column
        self.part[self.part_count].start = head.at
        self.part[self.part_count].count = count
        self.part_count += 1
        self.rows += count
        self.bytes += bytes
        head.at += count
        return True

    cdef object put_together(self):
        """A batch of the parts."""
        arrays = self.copied(self.out, 0)
        if self.with_key:
            arrays += self.copied(self.key_out, self.out.count)
        return pa.RecordBatch.from_arrays(arrays or [pa.nulls(self.rows)], schema=self.schema)

    cdef list copied(self, ArrowColumns out, Py_ssize_t first):
        cdef Py_ssize_t at
        out.begin(self.rows)
        with nogil:
            for at in range(out.count):
                if out.out[at].shape == SHAPE_VARIABLE:
                    self.measure(&out.out[at], first + at)
        out.allocate(self.rows)
        with nogil:
            for at in range(out.count):
                self.fill(&out.out[at], first + at)
        return out.arrays(self.rows)

    cdef void measure(self, OutColumn* out, Py_ssize_t column) noexcept nogil:
        cdef uint32_t number
        cdef Py_ssize_t to = 0
        cdef const Part* part
        cdef const Drawn* of
        for number in range(self.part_count):
            part = &self.part[number]
            of = &part.column[column]
            measure_span(out, of.offsets, of.shift + part.start, to, part.count)
            to += part.count

    cdef void fill(self, OutColumn* out, Py_ssize_t column) noexcept nogil:
        cdef uint32_t number
        cdef Py_ssize_t to = 0
        cdef const Part* part
        cdef const Drawn* of
        for number in range(self.part_count):
            part = &self.part[number]
            of = &part.column[column]
            fill_span(
                out, of.validity, of.offsets, of.values, of.shift + part.start, to, part.count
            )
            to += part.count

    cdef object cut(self, batch):
        """A stream's batch with the columns that are asked for."""
        if self.with_key:
            return batch
        arrays = batch.columns[:self.out.count]
        return pa.RecordBatch.from_arrays(arrays or [pa.nulls(batch.num_rows)], schema=self.schema)
