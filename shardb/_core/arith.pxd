# Arithmetic on Datums with PostgreSQL's results and errors: integers, floats, numerics, dates.
#
# `out` may not be an operand. Operands are not NULL. Functions return 0, or -1 with the error slot
# set (22003 out of range, 22012 division by zero, 22008 dates).

from libc.stdint cimport int64_t
from shardb._core.datum cimport Datum, i128

cdef enum:
    ARITH_ADD = 1
    ARITH_SUB = 2
    ARITH_MUL = 3
    ARITH_DIV = 4
    ARITH_MOD = 5
    ARITH_NEG = 6
    ARITH_ABS = 7

# Operands INT2/4/8 in any mix; the result is checked against `type`. For NEG and ABS b is unused.
cdef int int_arith(int op, int type, int64_t a, int64_t b, Datum* out) noexcept nogil
# Operands of any number type; `type` FLOAT4 or FLOAT8.
cdef int float_arith(int op, int type, const Datum* a, const Datum* b, Datum* out) noexcept nogil
# Operands NUMERIC or INT2/4/8.
cdef int numeric_arith(int op, const Datum* a, const Datum* b, Datum* out) noexcept nogil
# ADD and SUB (and MUL, DIV of an interval) on DATE, TIME, TIMESTAMP[TZ], INTERVAL and INT.
cdef int temporal_arith(int op, int type, const Datum* a, const Datum* b, Datum* out) noexcept nogil
# True if temporal_arith has (op, a_type, b_type) -> type.
cdef bint temporal_supported(int op, int type, int a_type, int b_type) noexcept nogil

cdef double number_as_double(const Datum* a) noexcept nogil
cdef int numeric_compare(const Datum* a, const Datum* b) noexcept nogil
# Adds b to the exact sum (n, scale); -1 on overflow.
cdef int numeric_accumulate(i128* n, int* scale, const Datum* b) noexcept nogil
# The largest value of scale `to` that is <= (n, scale); *exact tells if it is the value itself.
cdef int numeric_floor(i128 n, int scale, int to, i128* out, int* exact) noexcept nogil
