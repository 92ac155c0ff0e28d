# How rows of one layout become rows of another: the columns of a table change, its old rows do not.
#
# A map belongs to one source (a memtable or a segment) and one target layout. It is immutable.

from libc.stdint cimport int32_t
from shardb._core.buffer cimport Buf
from shardb._core.datum cimport Datum
from shardb._core.rowcodec cimport Layout, RowLayout

ctypedef struct ColumnMap:
    int32_t columns          # of the target
    int32_t* source          # for each target column: the source's column, -1 if it has none
    Datum* missing           # for each target column: what it is where the source has none
    bint same                # the source's rows are the target's, byte for byte

cdef class RowMap:
    cdef ColumnMap c
    cdef readonly RowLayout source
    cdef readonly RowLayout target
    cdef readonly bytes missing_row      # or None; owns what `missing` points to

# Appends the row as the target has it to `out`. REQUIRES: `row` is well-formed for the source.
cdef void row_convert(const ColumnMap* map, const Layout* source, const Layout* target,
                      const char* row, Buf* out) noexcept nogil
