"""Casts between SQL types with PostgreSQL's semantics, errors and roundings."""

from libc.math cimport isinf, isnan, rint
from libc.stdint cimport int16_t, int32_t, int64_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy

from shardb._core.buffer cimport (
    Buf, arena_alloc, arena_free, arena_init, buf_bytes, buf_free, buf_init, buf_put, core_fail,
    raise_core,
)
from shardb._core.datetimes cimport (
    DATE_INFINITY, DATE_MINUS_INFINITY, TS_INFINITY, TS_MINUS_INFINITY, floor_div,
)
from shardb._core.datum cimport (
    T_BOOL, T_BPCHAR, T_BYTEA, T_DATE, T_FLOAT4, T_FLOAT8, T_INT2, T_INT4, T_INT8, T_INTERVAL,
    T_JSON, T_JSONB, T_NUMERIC, T_TEXT, T_TIME, T_TIMESTAMP, T_TIMESTAMPTZ, T_UNKNOWN, T_VARCHAR,
    datum_apply_typmod, datum_from_text, datum_init, datum_to_text, i128, type_is_text, type_name,
)
from shardb._core.numeric cimport numeric_from_double, numeric_to_double, numeric_to_int64

cdef int64_t US_PER_DAY = 86400000000LL


cdef int fail_cast(int source, int target) noexcept nogil:
    cdef char text[120]
    snprintf(text, 120, b"cannot cast type %s to %s", type_name(source), type_name(target))
    return core_fail(b"42846", text)


cdef int fail_out_of_range(int type) noexcept nogil:
    cdef char text[80]
    snprintf(text, 80, b"%s out of range", type_name(type))
    return core_fail(b"22003", text)


cdef inline bint int_fits(int type, int64_t v) noexcept nogil:
    if type == T_INT4:
        return -2147483648LL <= v <= 2147483647LL
    if type == T_INT2:
        return -32768 <= v <= 32767
    return True


cdef int to_int(const Datum* src, int type, Datum* dst) noexcept nogil:
    cdef int64_t v
    cdef double f
    if T_BOOL <= src.type <= T_INT8:
        if (src.type == T_BOOL) and type != T_INT4:
            return fail_cast(src.type, type)
        v = src.i
    elif src.type == T_FLOAT4 or src.type == T_FLOAT8:
        f = rint(src.f)
        if isnan(f) or f >= 9223372036854775808.0 or f < -9223372036854775808.0:
            return fail_out_of_range(type)
        v = <int64_t>f
    elif src.type == T_NUMERIC:
        if numeric_to_int64(src.n, src.scale, &v) != 0:
            return fail_out_of_range(type)
    else:
        return fail_cast(src.type, type)
    if not int_fits(type, v):
        return fail_out_of_range(type)
    datum_init(dst, type)
    dst.i = v
    return 0


cdef int to_float(const Datum* src, int type, Datum* dst) noexcept nogil:
    cdef double f
    if T_INT2 <= src.type <= T_INT8:
        f = <double>src.i
    elif src.type == T_FLOAT4 or src.type == T_FLOAT8:
        f = src.f
    elif src.type == T_NUMERIC:
        f = numeric_to_double(src.n, src.scale)
    else:
        return fail_cast(src.type, type)
    if type == T_FLOAT4:
        if isinf(<float>f) and not isinf(f):
            return core_fail(b"22003", b"value out of range: overflow")
        if <float>f == 0 and f != 0:
            return core_fail(b"22003", b"value out of range: underflow")
        f = <float>f
    datum_init(dst, type)
    dst.f = f
    return 0


cdef int to_numeric(const Datum* src, Datum* dst) noexcept nogil:
    cdef i128 n = 0
    cdef int16_t scale = 0
    if T_INT2 <= src.type <= T_INT8:
        n = src.i
    elif src.type == T_NUMERIC:
        n = src.n
        scale = src.scale
    elif src.type == T_FLOAT4 or src.type == T_FLOAT8:
        if numeric_from_double(src.f, 6 if src.type == T_FLOAT4 else 15, &n, &scale) != 0:
            return -1
    else:
        return fail_cast(src.type, T_NUMERIC)
    datum_init(dst, T_NUMERIC)
    dst.n = n
    dst.scale = scale
    return 0


cdef int to_moment(const Datum* src, int type, Datum* dst) noexcept nogil:
    """DATE, TIME and TIMESTAMP[TZ] among themselves, and INTERVAL to TIME; UTC is the zone."""
    cdef int64_t v = src.i
    cdef bint stamp = src.type == T_TIMESTAMP or src.type == T_TIMESTAMPTZ
    if type == T_DATE:
        if stamp:
            if v == TS_INFINITY:
                v = DATE_INFINITY
            elif v == TS_MINUS_INFINITY:
                v = DATE_MINUS_INFINITY
            else:
                v = floor_div(v, US_PER_DAY)
        elif src.type != T_DATE:
            return fail_cast(src.type, type)
    elif type == T_TIME:
        if stamp and (v == TS_INFINITY or v == TS_MINUS_INFINITY):
            datum_init(dst, type)
            dst.null = 1  # as PostgreSQL: infinity has no time of day
            return 0
        if stamp or src.type == T_INTERVAL:
            v = v - floor_div(v, US_PER_DAY) * US_PER_DAY
        elif src.type != T_TIME:
            return fail_cast(src.type, type)
    else:
        if src.type == T_DATE:
            if v == DATE_INFINITY:
                v = TS_INFINITY
            elif v == DATE_MINUS_INFINITY:
                v = TS_MINUS_INFINITY
            elif v > 106751990 or v < -106751990:
                return core_fail(b"22008", b"date out of range for timestamp")
            else:
                v = v * US_PER_DAY
        elif not stamp:
            return fail_cast(src.type, type)
    datum_init(dst, type)
    dst.i = v
    return 0


cdef int to_text(const Datum* src, int type, Datum* dst, Arena* arena) noexcept nogil:
    cdef Buf out
    cdef char* p
    cdef int why
    cdef int n
    cdef const char* same
    if type_is_text(src.type) or src.type == T_JSON or src.type == T_JSONB:
        same = src.p
        n = src.len
        if src.type == T_BPCHAR and type != T_BPCHAR:
            while n and same[n - 1] == c' ':
                n -= 1
        datum_init(dst, type)
        dst.p = same
        dst.len = n
        return 0
    buf_init(&out)
    if src.type == T_BOOL:
        if src.i:
            buf_put(&out, b"true", 4)
        else:
            buf_put(&out, b"false", 5)
        why = 0
    else:
        # a numeric prints at its own scale here: the value, not a column, is what is cast
        why = datum_to_text(src, 4 if src.type == T_NUMERIC and src.scale < 16 else -1, &out)
    if why == 0:
        p = arena_alloc(arena, out.len)
        if p == NULL or out.failed:
            why = core_fail(b"53200", b"out of memory")
        else:
            memcpy(p, out.data, out.len)
            datum_init(dst, type)
            dst.p = p
            dst.len = <int32_t>out.len
    buf_free(&out)
    return why


cdef int convert(const Datum* src, int type, Datum* dst, Arena* arena) noexcept nogil:
    cdef Datum copy
    if src.type == type:
        dst[0] = src[0]
        return 0
    if type == T_TEXT or type == T_VARCHAR or type == T_BPCHAR or type == T_UNKNOWN:
        return to_text(src, type, dst, arena)
    if type_is_text(src.type):
        copy = src[0]
        if copy.type == T_BPCHAR and type != T_BYTEA:
            while copy.len and copy.p[copy.len - 1] == c' ':
                copy.len -= 1
        return datum_from_text(type, -1, copy.p, copy.len, dst, arena)
    if T_INT2 <= type <= T_INT8:
        return to_int(src, type, dst)
    if type == T_FLOAT4 or type == T_FLOAT8:
        return to_float(src, type, dst)
    if type == T_NUMERIC:
        return to_numeric(src, dst)
    if T_DATE <= type <= T_TIMESTAMPTZ:
        if not (T_DATE <= src.type <= T_INTERVAL):
            return fail_cast(src.type, type)
        return to_moment(src, type, dst)
    if type == T_INTERVAL and src.type == T_TIME:
        copy = src[0]
        datum_init(dst, T_INTERVAL)
        dst.i = copy.i
        return 0
    if type == T_BOOL and src.type == T_INT4:
        copy = src[0]
        datum_init(dst, T_BOOL)
        dst.i = 1 if copy.i else 0
        return 0
    if type == T_JSONB and src.type == T_JSON:
        copy = src[0]
        return datum_from_text(T_JSONB, -1, copy.p, copy.len, dst, arena)
    if type == T_JSON and src.type == T_JSONB:
        dst[0] = src[0]
        dst.type = T_JSON
        return 0
    return fail_cast(src.type, type)


cdef int datum_cast(const Datum* src, int type, int typmod, Datum* dst, Arena* arena) noexcept nogil:
    if src.null:
        datum_init(dst, type)
        dst.null = 1
        return 0
    if convert(src, type, dst, arena) != 0:
        return -1
    if dst.null:
        return 0
    return datum_apply_typmod(dst, typmod, False, arena)


cdef int datum_cast_explicit(const Datum* src, int type, int typmod, Datum* dst,
                             Arena* arena) noexcept nogil:
    if src.null:
        datum_init(dst, type)
        dst.null = 1
        return 0
    if convert(src, type, dst, arena) != 0:
        return -1
    if dst.null:
        return 0
    return datum_apply_typmod(dst, typmod, True, arena)


def cast_text(int source, int source_typmod, bytes text, int target, int target_typmod,
              bint explicit_cast=True) -> bytes | None:
    """Casts a value given as text; the result's text, None for NULL. For tests and slow paths."""
    cdef Arena arena
    cdef Buf out
    cdef Datum a, b
    cdef int why
    arena_init(&arena)
    buf_init(&out)
    try:
        if datum_from_text(source, source_typmod, text, len(text), &a, &arena) != 0:
            raise_core()
        if explicit_cast:
            why = datum_cast_explicit(&a, target, target_typmod, &b, &arena)
        else:
            why = datum_cast(&a, target, target_typmod, &b, &arena)
        if why != 0:
            raise_core()
        if b.null:
            return None
        if datum_to_text(&b, target_typmod, &out) != 0:
            raise_core()
        return buf_bytes(&out)
    finally:
        buf_free(&out)
        arena_free(&arena)
