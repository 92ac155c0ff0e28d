# Columns of Arrow record batches, filled from rows or from other columns without the GIL.
#
# Use: an ArrowColumns is made once; for each batch `begin`, then the offsets of variable columns
# are measured while rows are found, then `allocate`, then the values are filled, then `arrays`.
# Output rows may be filled in any pieces, each once. One thread at a time.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from shardb._core.rowcodec cimport Layout, RowLayout

cdef enum:
    BLOCK_ROWS = 512   # rows filled column after column while they are in cache

# How a column's values lie in Arrow's buffers.
cdef enum Shape:
    SHAPE_BITS
    SHAPE_FIXED
    SHAPE_INTERVAL
    SHAPE_VARIABLE

# A row that goes into the batch.
ctypedef struct FoundRow:
    const char* row
    const char* key
    uint64_t ts
    uint32_t key_length

# Where rows of one layout hold a column.
ctypedef struct RowColumn:
    uint16_t position
    uint32_t slot

# A column of the batch being built; Python objects own the buffers.
ctypedef struct OutColumn:
    Shape shape
    uint32_t width
    uint8_t* validity
    char* values
    int32_t* offsets         # entry 0 is set; the others are measured

cdef inline bint row_null(const char* row, uint16_t position) noexcept nogil:
    return ((<const uint8_t*> row)[2 + (position >> 3)] >> (position & 7)) & 1

cdef inline void row_variable(
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

# --- Each makes output rows [at, at + count). `found` and `start` are the first row's.
# Offsets of a variable column, from rows and from another batch's offsets.
cdef void measure_rows(const Layout* layout, const RowColumn* column, OutColumn* out,
                       const FoundRow* found, Py_ssize_t at, Py_ssize_t count) noexcept nogil
cdef void measure_span(OutColumn* out, const int32_t* offsets, Py_ssize_t start, Py_ssize_t at,
                       Py_ssize_t count) noexcept nogil
# Values and validity. A span's come from Arrow buffers of the same type (validity may be NULL).
cdef void fill_rows(const Layout* layout, const RowColumn* column, OutColumn* out,
                    const FoundRow* found, Py_ssize_t at, Py_ssize_t count) noexcept nogil
cdef void fill_span(OutColumn* out, const uint8_t* validity, const int32_t* offsets,
                    const char* values, Py_ssize_t start, Py_ssize_t at,
                    Py_ssize_t count) noexcept nogil
# Keys, with their offsets after offsets[at].
cdef void fill_keys(const FoundRow* found, int32_t* offsets, char* values, Py_ssize_t at,
                    Py_ssize_t count) noexcept nogil
# Bits into zeroed bits.
cdef void copy_bits(uint8_t* to, Py_ssize_t at, const uint8_t* bits, Py_ssize_t start,
                    Py_ssize_t count) noexcept nogil

# Where rows of `layout` hold its column `position`.
cdef RowColumn row_column(RowLayout layout, int position) noexcept

cdef class ArrowColumns:
    cdef OutColumn* out
    cdef Py_ssize_t count
    cdef list types
    cdef list offsets
    cdef list validity
    cdef list values
    # New offsets buffers for up to `rows_max` rows.
    cdef int begin(self, Py_ssize_t rows_max) except -1
    # Buffers for the values of `rows` rows whose offsets are measured.
    cdef int allocate(self, Py_ssize_t rows) except -1
    # The batch's arrays; the buffers are theirs from now on.
    cdef list arrays(self, Py_ssize_t rows)
