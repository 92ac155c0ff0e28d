# Aggregates of row programs: count_star, count, sum, min, max.

from libc.stdint cimport int32_t, int64_t, uint8_t
from shardb._core.buffer cimport Buf
from shardb._core.datum cimport Datum, i128
from shardb._core.expr cimport Expr, Frame

cdef enum:
    AGG_COUNT_STAR = 0
    AGG_COUNT = 1
    AGG_SUM = 2
    AGG_MIN = 3
    AGG_MAX = 4

ctypedef struct Accumulator:
    int32_t function
    uint8_t type          # of the result
    int32_t typmod
    const Expr* argument  # NULL for count_star
    int64_t count         # arguments that were not NULL
    i128 n
    int scale
    double f
    Datum best            # min, max
    Buf text              # holds best's bytes

cdef void aggregate_reset(Accumulator* a) noexcept nogil
cdef int aggregate_add(Accumulator* a, const Frame* f) noexcept nogil
cdef int aggregate_result(const Accumulator* a, Datum* out) noexcept nogil
# AGG_... of a name on an argument of type `argument`; raises CoreError 0A000 if there is none.
cdef int aggregate_function(str name, int result, int argument) except -1
