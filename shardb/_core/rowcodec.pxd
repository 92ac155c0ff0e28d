# The row format: one row of a table (or one parameter vector) as bytes.
#
#   u16 schema_version | null bitmap, ceil(n/8) bytes, bit set = NULL | fixed region | u32 end offset
#   of each variable column, counted from the end of these offsets | the variable bytes
#
# All little-endian and unaligned. The fixed region has a slot for each fixed column in column order,
# zero when NULL: BOOL 1, INT2 2, INT4/DATE/FLOAT4 4, INT8/FLOAT8/TIME/TIMESTAMP[TZ] 8,
# NUMERIC 16 (int128, at the column's scale: from typmod, 16 if unconstrained), UUID 16,
# INTERVAL 16 (int32 months, int32 days, int64 us). Variable: TEXT VARCHAR BPCHAR BYTEA JSON JSONB
# UNKNOWN. NULL variable columns repeat the previous end offset.

from shardb._core.datum cimport Datum
from libc.stdint cimport int16_t, int32_t, uint8_t, uint16_t, uint32_t

ctypedef struct ColumnLayout:
    uint8_t type
    uint8_t variable       # 1: `slot` is the index among variable columns
    int16_t scale          # NUMERIC: the column's scale
    int32_t typmod
    uint32_t slot          # fixed: byte offset from the start of the row
    uint32_t width         # fixed: bytes

ctypedef struct Layout:
    uint16_t schema_version
    uint16_t columns
    uint16_t variable_columns
    uint32_t bitmap_at     # always 2
    uint32_t offsets_at    # where the end offsets begin
    uint32_t data_at       # where the variable bytes begin
    ColumnLayout* column

cdef class RowLayout:
    cdef Layout c
    cdef readonly tuple types      # of (type_code, typmod)

# Reads column `index` of a row; the Datum points into the row. REQUIRES: the row is well-formed.
cdef void row_get(const Layout* layout, const char* row, int index, Datum* out) noexcept nogil
# Bytes that `values` (one Datum a column, of the columns' own types and scale) take when encoded.
cdef Py_ssize_t row_size(const Layout* layout, const Datum* values) noexcept nogil
# Encodes `values` to `out`, which has room for row_size bytes.
cdef void row_put(const Layout* layout, const Datum* values, char* out) noexcept nogil
# 0 if `row` of `length` bytes is well-formed for `layout`, else -1. For bytes from outside.
cdef int row_check(const Layout* layout, const char* row, Py_ssize_t length) noexcept nogil

# Puts `d` at the column's scale and length (typmod), so that row_size and row_put take it:
# 0, or -1 with 22003 / 22001 set. Numerics of another scale are rounded.
from shardb._core.buffer cimport Arena, Buf
cdef int row_fit(const Layout* layout, int index, Datum* d, Arena* arena) noexcept nogil
# Appends the row of `values` to `out`.
cdef void row_append(const Layout* layout, const Datum* values, Buf* out) noexcept nogil
