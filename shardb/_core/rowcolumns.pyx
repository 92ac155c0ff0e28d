"""Columns of Arrow record batches, filled from rows or from columns of other batches.

Bits are or'ed into zeroed buffers, so that pieces may start at any row.
"""

from libc.stdint cimport uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

import pyarrow as pa

from shardb._core.datum cimport T_BOOL, T_INTERVAL, T_NUMERIC
from shardb._core.rowcodec cimport ColumnLayout

cdef extern from *:
    """
    #define shardb_popcount(v) __builtin_popcountll(v)
    """
    int popcount "shardb_popcount"(uint64_t v) noexcept nogil


# --- bits

cdef void copy_bits(uint8_t* to, Py_ssize_t at, const uint8_t* bits, Py_ssize_t start,
                    Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t shift
    cdef Py_ssize_t whole
    cdef Py_ssize_t index
    while count and at & 7:
        to[at >> 3] |= ((bits[start >> 3] >> (start & 7)) & 1) << (at & 7)
        at += 1
        start += 1
        count -= 1
    whole = count >> 3
    shift = start & 7
    if shift == 0:
        memcpy(to + (at >> 3), bits + (start >> 3), whole)
    else:
        for index in range(whole):
            to[(at >> 3) + index] = <uint8_t> (
                bits[(start >> 3) + index] >> shift
                | bits[(start >> 3) + index + 1] << (8 - shift)
            )
    for index in range(8 * whole, count):
        to[(at + index) >> 3] |= (
            (bits[(start + index) >> 3] >> ((start + index) & 7)) & 1
        ) << ((at + index) & 7)


cdef void set_bits(uint8_t* to, Py_ssize_t at, Py_ssize_t count) noexcept nogil:
    while count and at & 7:
        to[at >> 3] |= 1 << (at & 7)
        at += 1
        count -= 1
    memset(to + (at >> 3), 0xFF, count >> 3)
    at += count & ~<Py_ssize_t> 7
    if count & 7:
        to[at >> 3] |= (1 << (count & 7)) - 1


cdef int64_t zero_bits(const uint8_t* bits, Py_ssize_t count) noexcept nogil:
    """How many of the first `count` bits are 0. REQUIRES: those after them in the byte are 0."""
    cdef Py_ssize_t size = (count + 7) >> 3
    cdef Py_ssize_t index
    cdef uint64_t word
    cdef int64_t ones = 0
    for index in range(size >> 3):
        memcpy(&word, bits + 8 * index, 8)
        ones += popcount(word)
    for index in range(size & ~<Py_ssize_t> 7, size):
        ones += popcount(bits[index])
    return count - ones


# --- from rows

cdef void measure_rows(const Layout* layout, const RowColumn* column, OutColumn* out,
                       const FoundRow* found, Py_ssize_t at, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t index
    cdef const char* start
    cdef uint32_t length
    cdef int32_t* offsets = out.offsets + at
    for index in range(count):
        row_variable(layout, found[index].row, column.slot, &start, &length)
        offsets[index + 1] = offsets[index] + <int32_t> length


cdef void fill_validity(uint8_t* validity, uint16_t position, const FoundRow* found, Py_ssize_t at,
                        Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t index
    for index in range(count):
        validity[(at + index) >> 3] |= (
            (row_null(found[index].row, position) ^ 1) << ((at + index) & 7)
        )


cdef void fill_interval(char* to, const char* slot) noexcept nogil:
    """Months and days as they are, microseconds to nanoseconds, kept within 64 bits."""
    cdef int64_t us
    cdef int64_t limit = 9223372036854775807 // 1000
    memcpy(to, slot, 8)
    memcpy(&us, slot + 8, 8)
    us = limit if us > limit else (-limit if us < -limit else us)
    us *= 1000
    memcpy(to + 8, &us, 8)


cdef void fill_rows(const Layout* layout, const RowColumn* column, OutColumn* out,
                    const FoundRow* found, Py_ssize_t at, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t index
    cdef const char* start
    cdef uint32_t length
    cdef uint32_t slot = column.slot
    cdef uint32_t width = out.width
    cdef char* to = out.values + at * <Py_ssize_t> width
    fill_validity(out.validity, column.position, found, at, count)
    if out.shape == SHAPE_VARIABLE:
        for index in range(count):
            row_variable(layout, found[index].row, slot, &start, &length)
            memcpy(out.values + out.offsets[at + index], start, length)
    elif out.shape == SHAPE_BITS:
        for index in range(at, at + count):
            (<uint8_t*> out.values)[index >> 3] |= (
                (found[index - at].row[slot] & 1) << (index & 7)
            )
    elif out.shape == SHAPE_INTERVAL:
        for index in range(count):
            fill_interval(to + 16 * index, found[index].row + slot)
    elif width == 8:
        for index in range(count):
            memcpy(to + 8 * index, found[index].row + slot, 8)
    elif width == 4:
        for index in range(count):
            memcpy(to + 4 * index, found[index].row + slot, 4)
    elif width == 16:
        for index in range(count):
            memcpy(to + 16 * index, found[index].row + slot, 16)
    else:
        for index in range(count):
            memcpy(to + <Py_ssize_t> width * index, found[index].row + slot, width)


cdef void fill_keys(const FoundRow* found, int32_t* offsets, char* values, Py_ssize_t at,
                    Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t index
    offsets += at
    for index in range(count):
        memcpy(values + offsets[index], found[index].key, found[index].key_length)
        offsets[index + 1] = offsets[index] + <int32_t> found[index].key_length


# --- from columns

cdef void measure_span(OutColumn* out, const int32_t* offsets, Py_ssize_t start, Py_ssize_t at,
                       Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t index
    cdef int32_t shift = out.offsets[at] - offsets[start]
    for index in range(1, count + 1):
        out.offsets[at + index] = offsets[start + index] + shift


cdef void fill_span(OutColumn* out, const uint8_t* validity, const int32_t* offsets,
                    const char* values, Py_ssize_t start, Py_ssize_t at,
                    Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t width = out.width
    if validity == NULL:
        set_bits(out.validity, at, count)
    else:
        copy_bits(out.validity, at, validity, start, count)
    if out.shape == SHAPE_VARIABLE:
        if offsets[start + count] > offsets[start]:
            memcpy(out.values + out.offsets[at], values + offsets[start],
                   offsets[start + count] - offsets[start])
    elif out.shape == SHAPE_BITS:
        copy_bits(<uint8_t*> out.values, at, <const uint8_t*> values, start, count)
    elif count == 1 and width == 8:
        memcpy(out.values + 8 * at, values + 8 * start, 8)
    elif count == 1 and width == 4:
        memcpy(out.values + 4 * at, values + 4 * start, 4)
    else:
        memcpy(out.values + width * at, values + width * start, width * count)


# --- the batch

cdef RowColumn row_column(RowLayout layout, int position) noexcept:
    cdef RowColumn column
    column.position = <uint16_t> position
    column.slot = layout.c.column[position].slot
    return column


cdef class ArrowColumns:
    """Columns `positions` of rows of `layout` as Arrow arrays of `types`.

    ValueError if the buffers of such an array are not laid out as the row's values are.
    """

    def __cinit__(self, RowLayout layout not None, positions, types):
        cdef Py_ssize_t index
        positions = list(positions)
        self.out = NULL
        self.types = list(types)
        self.count = len(self.types)
        if len(positions) != self.count:
            raise ValueError(f"{len(positions)} columns and {self.count} Arrow types")
        self.out = <OutColumn*> calloc(self.count or 1, sizeof(OutColumn))
        if self.out == NULL:
            raise MemoryError
        for index in range(self.count):
            describe(layout, positions[index], self.types[index], &self.out[index])

    def __dealloc__(self):
        free(self.out)

    cdef int begin(self, Py_ssize_t rows_max) except -1:
        cdef Py_ssize_t index
        self.offsets = [None] * self.count
        for index in range(self.count):
            if self.out[index].shape == SHAPE_VARIABLE:
                self.offsets[index] = pa.allocate_buffer((rows_max + 1) * 4)
                self.out[index].offsets = <int32_t*> <uintptr_t> self.offsets[index].address
                self.out[index].offsets[0] = 0
        return 0

    cdef int allocate(self, Py_ssize_t rows) except -1:
        cdef Py_ssize_t bitmap_bytes = (rows + 7) // 8
        cdef Py_ssize_t index
        cdef Py_ssize_t size
        cdef OutColumn* out
        self.validity = []
        self.values = []
        for index in range(self.count):
            out = &self.out[index]
            if out.shape == SHAPE_VARIABLE:
                size = out.offsets[rows]
            elif out.shape == SHAPE_BITS:
                size = bitmap_bytes
            else:
                size = rows * <Py_ssize_t> out.width
            self.validity.append(pa.allocate_buffer(bitmap_bytes))
            self.values.append(pa.allocate_buffer(size))
            out.validity = <uint8_t*> <uintptr_t> self.validity[index].address
            out.values = <char*> <uintptr_t> self.values[index].address
            memset(out.validity, 0, bitmap_bytes)
            if out.shape == SHAPE_BITS:
                memset(out.values, 0, bitmap_bytes)
        return 0

    cdef list arrays(self, Py_ssize_t rows):
        cdef Py_ssize_t index
        cdef int64_t nulls
        cdef list arrays = []
        for index in range(self.count):
            nulls = zero_bits(self.out[index].validity, rows)
            buffers = [self.validity[index] if nulls else None, self.values[index]]
            if self.out[index].shape == SHAPE_VARIABLE:
                buffers.insert(1, self.offsets[index].slice(0, (rows + 1) * 4))
            arrays.append(pa.Array.from_buffers(self.types[index], rows, buffers, nulls))
        self.offsets = self.validity = self.values = None
        return arrays


cdef int describe(RowLayout layout, int position, kind, OutColumn* out) except -1:
    """Checks that the Arrow type holds the column's values as they lie in the row."""
    cdef const ColumnLayout* column
    if position < 0 or position >= layout.c.columns:
        raise ValueError(f"no column {position}")
    column = &layout.c.column[position]
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
