# DataRow messages piece by piece: datarow_begin, a datarow_value for each column, datarow_end.

from libc.stdint cimport uint16_t
from shardb._core.buffer cimport Buf
from shardb._core.datum cimport Datum

cdef int datarow_begin(Buf* out, int columns) noexcept nogil
# `format` is 0 for text, 1 for binary. 0, or -1 with an error set.
cdef int datarow_value(Buf* out, const Datum* d, int typmod, int format) noexcept nogil
# `start` is out.len from before datarow_begin. 0, or -1 with an error set.
cdef int datarow_end(Buf* out, size_t start) noexcept nogil
