"""Values as bounds of key columns: `int_column < 2.5` selects the keys up to 2 (see the .pxd)."""

from libc.stdint cimport INT64_MAX, int64_t

from shardb._core.arith cimport number_as_double, numeric_floor
from shardb._core.buffer cimport Arena
from shardb._core.cast cimport datum_cast
from shardb._core.datum cimport (
    T_BPCHAR, T_FLOAT4, T_FLOAT8, T_INT2, T_INT4, T_INT8, T_NUMERIC, T_TEXT, T_UNKNOWN, T_VARCHAR,
    i128,
)


cdef inline bint is_int(int t) noexcept nogil:
    return t == T_INT2 or t == T_INT4 or t == T_INT8


cdef inline int beyond(int bound, bint above) noexcept nogil:
    """The value lies above (or below) everything that the column's type can hold."""
    if bound == BOUND_POINT:
        return KEY_NONE
    return KEY_NONE if (bound == BOUND_LOW) == above else KEY_UNBOUNDED


cdef inline int floored(int bound, bint exact, bint* inclusive) noexcept nogil:
    """The bound after its value was rounded down."""
    if not exact:
        if bound == BOUND_POINT:
            return KEY_NONE
        inclusive[0] = bound == BOUND_HIGH
    return KEY_VALUE


cdef bint key_comparable(int type, int value) noexcept nogil:
    cdef bint text = type == T_TEXT or type == T_VARCHAR or type == T_BPCHAR
    if type == value:
        return True
    if text:
        return value == T_TEXT or value == T_VARCHAR or value == T_BPCHAR or value == T_UNKNOWN
    if is_int(type) or type == T_NUMERIC:
        return is_int(value) or value == T_NUMERIC
    if type == T_FLOAT4 or type == T_FLOAT8:
        return is_int(value) or value == T_NUMERIC or value == T_FLOAT4 or value == T_FLOAT8
    return False


cdef int key_value(Datum* d, int type, int typmod, int bound, bint* inclusive,
                   Arena* arena) noexcept nogil:
    cdef int64_t low
    cdef int64_t high
    cdef int64_t number
    cdef i128 n
    cdef int exact = 1
    cdef int scale
    cdef Datum copy
    if is_int(type):
        high = 32767 if type == T_INT2 else (2147483647 if type == T_INT4 else INT64_MAX)
        low = -high - 1
        if d.type == T_NUMERIC:
            if numeric_floor(d.n, d.scale, 0, &n, &exact) != 0:
                return beyond(bound, d.n > 0)
            if n > <i128>high or n < <i128>low:
                return beyond(bound, n > 0)
            d.i = <int64_t>n
        elif not is_int(d.type):
            return KEY_ERROR if datum_cast(d, type, typmod, d, arena) != 0 else KEY_VALUE
        if d.i > high or d.i < low:
            return beyond(bound, d.i > 0)
        d.type = <unsigned char>type
        return floored(bound, exact, inclusive)
    if type == T_NUMERIC:
        scale = 16 if typmod < 4 else (typmod - 4) & 0xFFFF
        if is_int(d.type):
            d.n = d.i
            d.scale = 0
        elif d.type != T_NUMERIC:
            return KEY_ERROR if datum_cast(d, type, typmod, d, arena) != 0 else KEY_VALUE
        if numeric_floor(d.n, d.scale, scale, &n, &exact) != 0:
            return beyond(bound, d.n > 0)
        d.type = T_NUMERIC
        d.n = n
        d.scale = <short>scale
        return floored(bound, exact, inclusive)
    if type == T_FLOAT4 and (is_int(d.type) or d.type == T_NUMERIC):
        d.f = number_as_double(d)
        d.type = T_FLOAT8
    if type == T_FLOAT4 and d.type == T_FLOAT8:
        copy = d[0]
        copy.f = <double><float>d.f
        if copy.f != d.f and d.f == d.f:
            if bound == BOUND_POINT:
                return KEY_NONE
            # Rounded up: the rounded value is on the greater side of the bound, else on the lesser.
            inclusive[0] = (copy.f > d.f) == (bound == BOUND_LOW)
        d.f = copy.f
        d.type = T_FLOAT4
        return KEY_VALUE
    if type == T_BPCHAR and (d.type == T_TEXT or d.type == T_VARCHAR or d.type == T_UNKNOWN):
        d.type = T_BPCHAR
    if d.type == type:
        return KEY_VALUE
    if (type == T_TEXT or type == T_VARCHAR) and (
        d.type == T_TEXT or d.type == T_VARCHAR or d.type == T_UNKNOWN
    ):
        d.type = <unsigned char>type
        return KEY_VALUE
    return KEY_ERROR if datum_cast(d, type, typmod, d, arena) != 0 else KEY_VALUE
